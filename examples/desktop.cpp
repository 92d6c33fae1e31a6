// desktop: an app that records what its user does at once, and delivers from a thread of its own, so that no click ever waits for the
// network. At the end it gives delivery two seconds; what is left goes out at the next start. SPDX-License-Identifier: MIT
//
//     desktop usage.db KEY         each line typed is a feature used; an empty line shows today's counts, the end of input quits
#include <chrono>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>

#include "meter.hpp"

using namespace std::chrono_literals;

namespace {

/// Flushes now, and then every `interval`, until it is destroyed.
class Deliverer {
public:
    Deliverer(meter::Meter& usage, std::chrono::seconds interval) : usage_(usage), interval_(interval), thread_([this] { run(); }) {}

    ~Deliverer() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_one();
        thread_.join();
    }

private:
    void run() {
        std::unique_lock lock(mutex_);
        do {
            lock.unlock();
            deliver();
            lock.lock();
        } while (!wake_.wait_for(lock, interval_, [this] { return stopping_; }));
    }

    /// Short deadlines, so that quitting does not wait long. An error, a full disk for example, may have passed by the next time.
    void deliver() {
        try {
            usage_.flush({.deadline = 2s});
        } catch (const meter::Error& error) {
            std::cerr << "delivery: " << error.what() << "\n";
        }
    }

    meter::Meter& usage_;
    std::chrono::seconds interval_;
    std::mutex mutex_;
    std::condition_variable wake_;
    bool stopping_ = false;
    std::thread thread_;  // last: it uses the others
};

void show_today(const meter::Meter& usage) {
    for (const auto& name : usage.list_names({.period = meter::last_days(1), .sort = meter::NameSort::occurrences})) {
        std::cout << name.occurrences << "  " << name.name << "\n";
    }
    const meter::Balance balance = usage.balance("lago");
    std::cout << balance.delivered << " delivered, " << balance.pending << " pending, " << balance.parked << " parked\n";
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: desktop DATABASE API_KEY\n";
        return 2;
    }
    try {
        meter::Meter usage({.path = argv[1]});
        usage.connect(meter::Upstream::lago({.api_key = argv[2]}));
        {
            const Deliverer background(usage, 30s);
            for (std::string feature; std::getline(std::cin, feature);) {
                if (feature.empty()) {
                    show_today(usage);
                } else {
                    usage.record({.name = feature, .subscription = "desktop"});
                }
            }
        }
        usage.flush({.deadline = 2s});
        show_today(usage);
        return 0;
    } catch (const meter::Error& error) {
        std::cerr << "desktop: " << error.what() << "\n";
        return 1;
    }
}
