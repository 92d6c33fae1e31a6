// A sealed database with bytes changed in what is packed, or anywhere in the file: every question is answered or refused with an Error,
// and nothing else happens. Answers may be wrong where a changed byte still makes sense; verify() is there to find that.
#include <sqlite3.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "../../meter.hpp"
#include "fuzz.hpp"

using namespace meter;

namespace {

// One directory for the whole run, removed at its end.
struct Folder {
    std::filesystem::path path = std::filesystem::temp_directory_path() / ("meter-fuzz-" + std::to_string(std::random_device{}()));
    Folder() { std::filesystem::create_directory(path); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
};

const Folder& folder() {
    static const Folder made;
    return made;
}

MeterOptions options(const std::string& name) {
    MeterOptions made;
    made.path = (folder().path / name).string();
    made.durability = Durability::process;
    made.chunk_events = 64;
    made.clock = [] { return Timestamp::parse("2026-03-01T00:00:00Z"); };
    return made;
}

struct Database {
    std::string path;
    sqlite3* db = nullptr;
    explicit Database(const std::string& name) : path((folder().path / name).string()) { sqlite3_open(path.c_str(), &db); }
    Database(const Database&) = delete;
    Database& operator=(const Database&) = delete;
    ~Database() { sqlite3_close(db); }
    void run(const std::string& sql) const { sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr); }
};

// Sealed, with something of everything, closed, and copied afresh for every input.
const std::string& whole() {
    static const std::string bytes = [] {
        {
            Meter m(options("whole.db"));
            std::string lines;
            for (int i = 0; i < 200; ++i) {
                const std::string n = std::to_string(i);
                lines += R"({"id":"e)" + n + R"(","name":")" + (i % 3 == 0 ? "a" : "b") + R"(","customer":"c)" + std::to_string(i % 5) +
                         R"(","subscription":"s","timestamp":)" + std::to_string(1767225600 + i * 1000) + R"(,"value":)" + n +
                         R"(,"properties":{"n":)" + n + R"(.25,"t":"t)" + std::to_string(i % 7) + R"(","w":1234567890123456789012.)" + n +
                         R"(,"m":)" + (i % 2 == 0 ? "true" : "[1]") + R"(},"notice":{"body":"x"}})" + "\n";
            }
            m.record_json(lines);
            m.define({.code = "n", .event = "a", .aggregation = Aggregation::sum, .property = "n"});
            m.verify(true);  // seals what is full, now
        }
        std::ifstream in(folder().path / "whole.db", std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }();
    return bytes;
}

template <class Ask>
void ask(Ask&& question) {
    try {
        question();
    } catch (const Error& error) {
        const ErrorCode code = error.code();
        const bool expected = code == ErrorCode::corrupt || code == ErrorCode::overflow || code == ErrorCode::not_a_database ||
                              code == ErrorCode::io || code == ErrorCode::newer_schema || code == ErrorCode::not_found ||
                              code == ErrorCode::too_large || code == ErrorCode::read_only || code == ErrorCode::full;
        meter_fuzz::require(expected, error.what());
    }
}

void ask_everything(Meter& m) {
    for (const char* name : {"a", "b"}) {
        for (const char* property : {"n", "t", "w", "m", "value", "source"}) {
            for (const Bin bin : {Bin::none, Bin::hour, Bin::month}) {
                ask([&] {
                    m.aggregate({.code = name, .aggregation = Aggregation::sum, .property = property}, {.bin = bin, .group_by = {"t", "customer"}});
                });
            }
            ask([&] { m.aggregate({.code = name, .aggregation = Aggregation::unique_count, .property = property}, {.customer = "c1"}); });
            ask([&] {
                m.aggregate({.code = name}, {.subscription = "s", .group_by = {property}, .filter = Filter::where("t", Operator::contains, "t")});
            });
        }
    }
    ask([&] { m.aggregate({.metric = "n"}); });
    ask([&] { m.metrics(); });
    ask([&] { m.books(); });
    ask([&] { m.list({.limit = 1000, .count = true}); });
    ask([&] { m.list({.customer = "c2", .filter = Filter::equals("w", 1), .count = true}); });
    ask([&] { m.list({.ids = {"e1", "e150"}}); });
    for (const char* field : {"customer", "source", "value", "id", "w", "t", "timestamp"}) {
        ask([&] { m.list({.sort = {{field}, {"name", true}}, .limit = 1000}); });
        ask([&] { m.list({.filter = Filter::where(field, Operator::exists, true), .sort = {{"timestamp"}, {field, true}}}); });
    }
    ask([&] { m.list_names({.by_source = true}); });
    ask([&] { m.list_sources(); });
    ask([&] { m.monitoring({.period = Period{Timestamp::parse("2025-12-01"), Timestamp::parse("2026-12-01")}, .time_zone = "+00:30"}); });
    ask([&] { m.list_names({.customer = "c3"}); });
    for (int i = 0; i < 200; i += 9) ask([&] { m.find("e" + std::to_string(i)); });
    ask([&] { m.record({{.id = "e1", .name = "a"}, {.id = "new", .name = "a"}}); });
    ask([&] { m.verify(); });
    ask([&] { m.prune({.recorded_before = Timestamp::max()}); });
    ask([&] { m.verify(true); });
}

std::uint32_t number(const std::uint8_t* data) { return data[0] | std::uint32_t{data[1]} << 8 | std::uint32_t{data[2]} << 16; }

// Each change is five bytes: where (three), how, and the new byte.
void damage_file(std::string& bytes, const std::uint8_t* data, std::size_t size) {
    for (; size >= 5; data += 5, size -= 5) bytes[number(data) % bytes.size()] = static_cast<char>(data[4]);
}

// Within the packed blobs, so that SQLite itself notices nothing.
void damage_blobs(const std::string& name, const std::uint8_t* data, std::size_t size) {
    const Database database(name);
    const auto change = [&](const std::string& table, const std::string& column, std::uint32_t place, unsigned byte) {
        constexpr const char* digits = "0123456789abcdef";
        const std::string at = std::to_string(place >> 8) + " % length(" + column + ")", row = std::to_string(place & 0xFF);
        const std::string hex = {'x', '\'', digits[byte >> 4], digits[byte & 15], '\''};
        // Half of the time what is read is not checked, as of an older schema.
        const std::string hash = table == "columns" ? "hash" : table == "run_blocks" ? "entries_hash" : "";
        const std::string unchecked = hash.empty() || place % 2 == 0 ? "" : hash + " = NULL, ";
        database.run("UPDATE " + table + " SET " + unchecked + column + " = CAST(substr(" + column + ", 1, " + at + ") || " + hex + " || substr(" +
                     column + ", " + at + " + 2) AS BLOB) WHERE id = (SELECT id FROM " + table + " WHERE length(" + column + ") > 0 LIMIT 1 OFFSET " +
                     row + " % (SELECT count(*) FROM " + table + "))");
    };
    for (; size >= 5; data += 5, size -= 5) {
        switch (data[3] % 6) {
            case 0:
                change("run_blocks", "entries", number(data), data[4]);
                break;
            case 1:
                change("layouts", "keys", number(data), data[4]);
                break;
            case 2:
                database.run("UPDATE segments SET rows = rows + " + std::to_string(static_cast<int>(data[4]) - 128) +
                             " WHERE id = " + std::to_string(data[0] % 8));
                break;
            default:
                change("columns", "data", number(data), data[4]);
        }
    }
}

}  // namespace

std::vector<std::string> meter_fuzz::seeds() {
    std::vector<std::string> made;
    std::mt19937_64 random(7);
    for (int i = 0; i < 12; ++i) {
        std::string& seed = made.emplace_back(i % 3 == 0 ? "f" : "b");
        for (std::size_t n = 5 * (1 + random() % 4); n > 0; --n) seed.push_back(static_cast<char>(random()));
    }
    return made;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 6) return 0;
    const bool anywhere = data[0] == 'f';
    std::string bytes = whole();
    if (anywhere) damage_file(bytes, data + 1, size - 1);
    for (const char* suffix : {"-wal", "-shm"}) std::filesystem::remove(folder().path / (std::string("damaged.db") + suffix));
    std::ofstream(folder().path / "damaged.db", std::ios::binary | std::ios::trunc) << bytes;
    if (!anywhere) damage_blobs("damaged.db", data + 1, size - 1);
    ask([] {
        Meter m(options("damaged.db"));
        ask_everything(m);
    });
    return 0;
}
