// A few threads that claim numbered items of a job. They spin for at most 500 microseconds between
// jobs, then sleep; after a fork the child starts its own.
#pragma once

#include <cstdint>

namespace weightguard::ternary {

using Work = void (*)(void* context, int64_t item, int worker);

// Runs work(context, i, worker) once for every i below `items`, on up to `threads` threads, the
// caller being worker 0. Returns when all are done. When another thread of the process is using the
// pool, the caller does everything itself.
void run_items(int64_t items, int threads, Work work, void* context);

// What run_items is given unless a call says otherwise: WEIGHTGUARD_TERNARY_THREADS, else the
// processors that this process may use.
int thread_count();
void set_thread_count(int threads);  // 1 to most_threads

constexpr int kMostThreads = 256;

}  // namespace weightguard::ternary
