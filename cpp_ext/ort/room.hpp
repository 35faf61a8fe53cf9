// Working memory of a node, kept by each thread that runs nodes: a steady state allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ort {

// `bytes` at an address that is a multiple of 64, until the thread's next call.
inline void* room(std::size_t bytes) {
    constexpr std::size_t line = 64;
    thread_local std::unique_ptr<char[]> held;
    thread_local std::size_t size = 0;
    if (size < bytes + line) {
        held.reset(new char[bytes + line]);
        size = bytes + line;
    }
    const auto at = reinterpret_cast<std::uintptr_t>(held.get());
    return held.get() + (line - at % line) % line;
}

}  // namespace ort
