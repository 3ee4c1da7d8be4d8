#include "pool.hpp"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

namespace weightguard::ternary {

namespace {

// Longer than a model's own work between two layers: waking a helper costs a small product's time.
constexpr auto kSpin = std::chrono::microseconds(500);

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

struct Job {
    Work work = nullptr;
    void* context = nullptr;
    int64_t items = 0;
    int workers = 0;
};

class Pool {
  public:
    void run(int64_t items, int threads, Work work, void* context);

  private:
    static constexpr uint32_t kOpen = 1u << 31;

    void start(int helpers);
    void helper(int worker);
    bool await(uint64_t seen);
    void claim(int worker);
    bool enter();

    std::mutex turn_;  // one job at a time
    Job job_;          // written only while the gate is shut and nobody is inside
    std::atomic<int64_t> next_{0};
    std::atomic<uint32_t> gate_{0};  // open or shut, and how many helpers are inside
    std::atomic<uint64_t> jobs_{0};
    std::atomic<int> sleepers_{0};
    std::mutex sleep_;
    std::condition_variable wake_;
    int helpers_ = 0;
};

void Pool::start(int helpers) {
    while (helpers_ < helpers) {
        try {
            std::thread(&Pool::helper, this, helpers_ + 1).detach();
        } catch (const std::system_error&) {
            return;  // fewer helpers: the caller claims what they would have
        }
        ++helpers_;
    }
}

void Pool::claim(int worker) {
    for (;;) {
        const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
        if (item >= job_.items) return;
        job_.work(job_.context, item, worker);
    }
}

bool Pool::enter() {
    uint32_t gate = gate_.load(std::memory_order_acquire);
    while (gate & kOpen)
        if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) return true;
    return false;
}

// Waits for a job after number `seen`: spinning, then asleep.
bool Pool::await(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (int turn = 1; jobs_.load(std::memory_order_acquire) == seen; ++turn) {
        relax();
        if (turn % 32 == 0 && std::chrono::steady_clock::now() >= until) {
            std::unique_lock<std::mutex> lock(sleep_);
            sleepers_.fetch_add(1);
            wake_.wait(lock, [&] { return jobs_.load() != seen; });
            sleepers_.fetch_sub(1);
        }
    }
    return true;
}

void Pool::helper(int worker) {
    for (uint64_t seen = 0; await(seen);) {
        seen = jobs_.load(std::memory_order_acquire);
        if (!enter()) continue;
        if (worker < job_.workers) claim(worker);
        gate_.fetch_sub(1, std::memory_order_release);
    }
}

void Pool::run(int64_t items, int threads, Work work, void* context) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || threads <= 1 || items <= 1) {
        for (int64_t item = 0; item < items; ++item) work(context, item, 0);
        return;
    }
    start(threads - 1);
    job_ = {work, context, items, threads};
    next_.store(0, std::memory_order_relaxed);
    gate_.store(kOpen, std::memory_order_release);
    jobs_.fetch_add(1);
    if (sleepers_.load()) {
        { const std::lock_guard<std::mutex> lock(sleep_); }
        wake_.notify_all();
    }
    claim(0);
    gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int turn_count = 0; gate_.load(std::memory_order_acquire); ++turn_count) {
        relax();
        if (turn_count > 10000) std::this_thread::yield();
    }
}

std::atomic<Pool*> pool{nullptr};

// The parent's helpers do not exist in the child, and its locks may be held by them: start anew.
void forget() { pool.store(new Pool); }

Pool& the_pool() {
    static const int registered = [] {
        pool.store(new Pool);
        return pthread_atfork(nullptr, nullptr, forget);
    }();
    (void)registered;
    return *pool.load();
}

int available_processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

int initial_threads() {
    const char* asked = std::getenv("WEIGHTGUARD_TERNARY_THREADS");
    const long threads = asked ? std::strtol(asked, nullptr, 10) : 0;
    if (threads >= 1) return static_cast<int>(std::min<long>(threads, kMostThreads));
    return std::min(available_processors(), kMostThreads);
}

std::atomic<int>& threads_in_use() {
    static std::atomic<int> threads{initial_threads()};
    return threads;
}

}  // namespace

void run_items(int64_t items, int threads, Work work, void* context) {
    the_pool().run(items, std::min(threads, kMostThreads), work, context);
}

int thread_count() { return threads_in_use().load(std::memory_order_relaxed); }
void set_thread_count(int threads) { threads_in_use().store(threads, std::memory_order_relaxed); }

}  // namespace weightguard::ternary
