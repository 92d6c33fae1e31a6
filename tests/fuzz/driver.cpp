// Runs a fuzzer without libFuzzer: its seeds, the files of a corpus, and a bounded number of inputs changed at random from these.
//
//     fuzz_NAME [--inputs N] [--seed N] [--write-seeds DIRECTORY] [files and directories of a corpus]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "fuzz.hpp"

namespace {

void run(const std::string& input, const char* what, std::uint64_t number) {
    try {
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
    } catch (const std::exception& fault) {
        std::ofstream("fuzz-failure.bin", std::ios::binary) << input;
        std::fprintf(stderr, "%s %llu: %s; the input is in fuzz-failure.bin\n", what, static_cast<unsigned long long>(number), fault.what());
        std::exit(1);
    }
}

std::string changed(std::string input, const std::vector<std::string>& pool, std::mt19937_64& random) {
    static const std::vector<std::string> tokens{"\"",
                                                 "\\",
                                                 "{",
                                                 "}",
                                                 "[",
                                                 "]",
                                                 ":",
                                                 ",",
                                                 "0",
                                                 "-",
                                                 "e",
                                                 ".",
                                                 "1e400",
                                                 "null",
                                                 "\\u0000",
                                                 "\\ud800",
                                                 "\xFF",
                                                 std::string(1, '\0'),
                                                 "99999999999999999999999999999999999999"};
    for (std::uint64_t changes = 1 + random() % 4; changes > 0; --changes) {
        const std::size_t at = input.empty() ? 0 : random() % input.size();
        const std::string& other = pool[random() % pool.size()];
        switch (random() % 6) {
            case 0:
                if (!input.empty()) input[at] = static_cast<char>(random());
                break;
            case 1:
                if (!input.empty()) input[at] = static_cast<char>(input[at] ^ (1 << random() % 8));
                break;
            case 2:
                input.erase(at, 1 + random() % 8);
                break;
            case 3:
                input.insert(at, tokens[random() % tokens.size()]);
                break;
            case 4:
                if (!other.empty()) input.insert(at, other.substr(random() % other.size(), random() % 32));
                break;
            default:
                input.resize(at);
        }
    }
    return input;
}

void add_files(std::vector<std::string>& pool, const std::filesystem::path& path) {
    if (std::filesystem::is_directory(path)) {
        for (const auto& entry : std::filesystem::directory_iterator(path)) add_files(pool, entry.path());
        return;
    }
    std::ifstream in(path, std::ios::binary);
    pool.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

}  // namespace

int main(int count, char** arguments) {
    std::uint64_t inputs = 1000, seed = 20261121;
    std::vector<std::string> pool = meter_fuzz::seeds();
    for (int i = 1; i < count; ++i) {
        const std::string argument = arguments[i];
        if (argument == "--inputs" && i + 1 < count) {
            inputs = std::strtoull(arguments[++i], nullptr, 10);
        } else if (argument == "--seed" && i + 1 < count) {
            seed = std::strtoull(arguments[++i], nullptr, 10);
        } else if (argument == "--write-seeds" && i + 1 < count) {
            const std::filesystem::path folder = arguments[++i];
            std::filesystem::create_directories(folder);
            for (std::size_t n = 0; n < pool.size(); ++n) std::ofstream(folder / std::to_string(n), std::ios::binary) << pool[n];
        } else {
            add_files(pool, argument);
        }
    }
    std::printf("seed %llu, %llu inputs\n", static_cast<unsigned long long>(seed), static_cast<unsigned long long>(inputs));
    for (std::size_t i = 0; i < pool.size(); ++i) run(pool[i], "corpus", i);
    std::mt19937_64 random(seed);
    for (std::uint64_t i = 0; i < inputs; ++i) run(changed(pool[random() % pool.size()], pool, random), "input", i);
    return 0;
}
