// A device on a processor, for tests: enough of CUDA that kernels/ring*.cu run without one.
//
// The threads of a block are coroutines, run one after another. __syncthreads makes a thread wait until
// every thread of its block has come there, a shuffle until every lane of its warp has; where threads wait
// for one another for ever, or have left, the program stops with DEADLOCK. What it cannot show: races
// between threads that no barrier orders, speed, and what a device's own instructions round differently.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

using std::fmaf;
using std::fmaxf;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;
enum cudaError { cudaSuccess };
inline cudaError cudaPeekAtLastError() { return cudaSuccess; }

namespace emulated {

enum class Waits { no, for_block, for_warp };

struct Device {
    dim3 grid, block, thread, index;
    std::vector<char> shared;
    std::vector<ucontext_t> context;
    std::vector<std::vector<char>> stacks;
    std::vector<Waits> waits;
    std::vector<char> left;
    std::vector<float> lanes;
    ucontext_t scheduler;
    std::function<void()> kernel;
    unsigned now = 0;
};
inline Device device;

inline void wait(Waits what) {
    const unsigned me = device.now;
    device.waits[me] = what;
    swapcontext(&device.context[me], &device.scheduler);
}

inline void enter() {
    device.kernel();
    device.left[device.now] = 1;
    swapcontext(&device.context[device.now], &device.scheduler);
}

// Lets threads first .. end - 1 go on if all of them wait for `what`.
inline bool release(unsigned first, unsigned end, Waits what) {
    for (unsigned i = first; i < end; ++i)
        if (device.left[i] || device.waits[i] != what) return false;
    for (unsigned i = first; i < end; ++i) device.waits[i] = Waits::no;
    return true;
}

inline void run_block(unsigned threads) {
    constexpr std::size_t stack_bytes = 1 << 15;
    for (unsigned i = 0; i < threads; ++i) {
        device.stacks[i].resize(stack_bytes);
        getcontext(&device.context[i]);
        device.context[i].uc_stack.ss_sp = device.stacks[i].data();
        device.context[i].uc_stack.ss_size = stack_bytes;
        device.context[i].uc_link = &device.scheduler;
        makecontext(&device.context[i], enter, 0);
    }
    for (;;) {
        bool remain = false, moved = false;
        for (unsigned i = 0; i < threads; ++i) {
            if (device.left[i]) continue;
            remain = true;
            if (device.waits[i] != Waits::no) continue;
            moved = true;
            device.now = i;
            device.thread = dim3(i, 0, 0);
            swapcontext(&device.scheduler, &device.context[i]);
        }
        if (!remain) return;
        for (unsigned first = 0; first < threads; first += 32) moved |= release(first, first + 32, Waits::for_warp);
        moved |= release(0, threads, Waits::for_block);
        if (!moved) {
            std::fprintf(stderr, "DEADLOCK: threads wait for ones that will not come\n");
            std::abort();
        }
    }
}

// Every block of a grid, one after another; shared memory starts as NaN.
inline void launch(dim3 grid, unsigned threads, std::size_t shared_bytes, std::function<void()> kernel) {
    device.grid = grid;
    device.block = dim3(threads);
    device.kernel = kernel;
    device.stacks.resize(threads);
    device.context.resize(threads);
    device.lanes.resize(threads);
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                device.index = dim3(x, y, z);
                device.shared.assign(shared_bytes + 4, static_cast<char>(0xff));
                device.left.assign(threads, 0);
                device.waits.assign(threads, Waits::no);
                run_block(threads);
            }
}

}  // namespace emulated

#define threadIdx emulated::device.thread
#define blockIdx emulated::device.index
#define blockDim emulated::device.block
#define gridDim emulated::device.grid

inline void __syncthreads() { emulated::wait(emulated::Waits::for_block); }

inline float __shfl_sync(unsigned, float value, int lane) {
    const unsigned me = emulated::device.now;
    emulated::device.lanes[me] = value;
    emulated::wait(emulated::Waits::for_warp);
    const float taken = emulated::device.lanes[me / 32 * 32 + lane % 32];
    emulated::wait(emulated::Waits::for_warp);  // before anybody writes anew
    return taken;
}

inline void __syncwarp() { emulated::wait(emulated::Waits::for_warp); }

inline bool __any_sync(unsigned mask, bool mine) {
    bool any = false;
    for (int lane = 0; lane < 32; ++lane) any |= __shfl_sync(mask, mine ? 1.0f : 0.0f, lane) != 0.0f;
    return any;
}

inline float __shfl_xor_sync(unsigned mask, float value, int other) {
    return __shfl_sync(mask, value, static_cast<int>(emulated::device.now % 32) ^ other);
}
