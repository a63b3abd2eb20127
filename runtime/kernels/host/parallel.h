// Threads over numbered tasks: every worker takes the next task until none is left.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace vocabseg {

// Calls worker(task) for every task in [0, tasks). Each thread gets its own worker from make_worker(), which holds its
// scratch memory. Which thread runs a task is unspecified, so a task must write only its own output. The first
// exception is rethrown here after all threads have stopped.
template <class MakeWorker>
void parallel_for(int tasks, int threads, MakeWorker make_worker) {
    std::atomic<int> next{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    auto run = [&] {
        try {
            auto worker = make_worker();
            for (int task = next++; task < tasks; task = next++) worker(task);
        } catch (...) {
            next = tasks;
            std::lock_guard<std::mutex> hold(failure_lock);
            if (!failure) failure = std::current_exception();
        }
    };
    if (tasks <= 0) return;
    std::vector<std::thread> others;
    const int wanted = (threads < tasks ? threads : tasks) - 1;
    for (int k = 0; k < wanted; ++k) {
        try {
            others.emplace_back(run);
        } catch (const std::system_error&) {
            break;  // no more threads available: those running do all the work
        }
    }
    run();
    for (auto& thread : others) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace vocabseg
