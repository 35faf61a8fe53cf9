// Matrices that steps stream from memory, moved to large pages.
//
// A step reads every weight once, and a page of 4 KB is then mostly a missed translation: on a virtual machine two
// cores read 21 GB/s from small pages and 36 GB/s from large ones. ONNX Runtime maps weights from their file, in small
// pages. So a node copies its matrix, a constant of its graph, the first time few rows ask for it; the file's pages
// stay the system's to drop. Where large pages cannot be had, the copy is a plain one, and where memory cannot, there
// is none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ort {

// A run of large pages; it lives as long as a matrix in it.
class LargePages {
public:
    static constexpr std::size_t kPage = std::size_t{2} << 20, kLeast = std::size_t{64} << 20;

    // Room for `bytes`, shared with other matrices where these are small; nullptr when there is no memory.
    static std::shared_ptr<char> room(std::size_t bytes) {
        static std::mutex once;
        static std::weak_ptr<LargePages> last;
        const std::lock_guard<std::mutex> hold(once);
        bytes = (bytes + 63) / 64 * 64;
        std::shared_ptr<LargePages> pages = last.lock();
        if (!pages || pages->size_ - pages->used_ < bytes) {
            pages.reset(new (std::nothrow) LargePages(bytes < kLeast ? kLeast : bytes));
            if (!pages || !pages->start_) return nullptr;
            last = pages;
        }
        char* at = pages->start_ + pages->used_;
        pages->used_ += bytes;
        return std::shared_ptr<char>(pages, at);
    }

    ~LargePages() {
#if defined(__linux__)
        if (start_) munmap(start_, size_);
#else
        ::operator delete[](start_, std::align_val_t{64});
#endif
    }
    LargePages(const LargePages&) = delete;
    LargePages& operator=(const LargePages&) = delete;

private:
    explicit LargePages(std::size_t bytes) : size_((bytes + kPage - 1) / kPage * kPage) {
#if defined(__linux__)
        void* got = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (got == MAP_FAILED) return;
        madvise(got, size_, MADV_HUGEPAGE);  // a wish: without it the pages are small
        start_ = static_cast<char*>(got);
#else
        start_ = static_cast<char*>(::operator new[](size_, std::align_val_t{64}, std::nothrow));
#endif
    }
    char* start_ = nullptr;
    std::size_t size_, used_ = 0;
};

// One matrix of one node.
class Resident {
public:
    // The copy of a matrix that never changes, made at the first call; the matrix itself if there is none.
    const void* of(const void* matrix, std::size_t bytes) {
        std::call_once(made_, [&] {
            copy_ = LargePages::room(bytes);
            if (copy_) std::memcpy(copy_.get(), matrix, bytes);
            from_ = matrix;
        });
        return copy_ && from_ == matrix ? copy_.get() : matrix;
    }

private:
    std::once_flag made_;
    std::shared_ptr<char> copy_;
    const void* from_ = nullptr;
};

constexpr std::int64_t kFewRows = 8;  // with more, a matrix is read from cache and pages matter less

}  // namespace ort
