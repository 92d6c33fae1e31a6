// The test program run again as another process. POSIX only.
#pragma once

#if defined(__unix__) || defined(__APPLE__)
#define METER_TEST_CHILDREN 1

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

extern char** environ;

namespace meter_test {

/// Another run of this program that does one hidden test case, told in the environment what to do.
class Child {
public:
    Child(const std::string& test_case, const std::vector<std::string>& settings) {
        std::vector<std::string> arguments{"/proc/self/exe", test_case, "-r", "compact"};
        std::vector<std::string> variables = settings;
        for (char** each = environ; *each != nullptr; ++each) variables.emplace_back(*each);
        const std::vector<char*> argv = pointers(arguments), envp = pointers(variables);
        if (posix_spawn(&pid_, "/proc/self/exe", nullptr, nullptr, argv.data(), envp.data()) != 0) throw std::runtime_error("posix_spawn");
    }
    Child(Child&& other) noexcept : pid_(other.pid_) { other.pid_ = 0; }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    ~Child() {
        if (pid_ != 0) wait();
    }
    /// The exit status; -1 when it was killed.
    int wait() {
        int status = 0;
        waitpid(pid_, &status, 0);
        pid_ = 0;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }

private:
    static std::vector<char*> pointers(std::vector<std::string>& texts) {
        std::vector<char*> list;
        for (std::string& text : texts) list.push_back(text.data());
        list.push_back(nullptr);
        return list;
    }
    pid_t pid_ = 0;
};

}  // namespace meter_test
#endif
