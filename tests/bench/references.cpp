#include "references.hpp"

#include <sqlite3.h>

#include <filesystem>
#include <stdexcept>

namespace bench {

namespace {

void check(sqlite3* db, int code) {
    if (code != SQLITE_OK && code != SQLITE_ROW && code != SQLITE_DONE) throw std::runtime_error(std::string("sqlite: ") + sqlite3_errmsg(db));
}

// Pragmas that a database file of meter's keeps, as statements that give them to another.
std::string lasting_pragmas(const std::string& beside) {
    const std::string path = beside + ".pragmas";
    { const meter::Meter made({.path = path}); }
    sqlite3* db = nullptr;
    check(db, sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE, nullptr));
    std::string found;
    for (const std::string pragma : {"page_size", "auto_vacuum"}) {
        sqlite3_stmt* row = nullptr;
        check(db, sqlite3_prepare_v2(db, ("PRAGMA " + pragma).c_str(), -1, &row, nullptr));
        check(db, sqlite3_step(row));
        found += "PRAGMA " + pragma + " = " + std::to_string(sqlite3_column_int64(row, 0)) + ";";
        sqlite3_finalize(row);
    }
    sqlite3_close(db);
    remove_database(path);
    return found;
}

}  // namespace

void Sqlite::Close::operator()(sqlite3* db) const {
    while (sqlite3_stmt* statement = sqlite3_next_stmt(db, nullptr)) sqlite3_finalize(statement);
    sqlite3_close(db);
}

Sqlite::Sqlite(const std::string& path, meter::Durability durability) {
    const bool fresh = !std::filesystem::exists(path);
    sqlite3* db = nullptr;
    check(db, sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr));
    db_.reset(db);
    if (fresh) execute(lasting_pragmas(path));
    execute("PRAGMA journal_mode = WAL; PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 4194304");
    execute(durability == meter::Durability::full ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL");
    execute("PRAGMA cache_size = -" + std::to_string(meter::MeterOptions().cache_bytes / 1024));
    begin_ = prepare("BEGIN IMMEDIATE");
    commit_ = prepare("COMMIT");
}

Sqlite::~Sqlite() = default;

void Sqlite::execute(const std::string& sql) { check(db_.get(), sqlite3_exec(db_.get(), sql.c_str(), nullptr, nullptr, nullptr)); }

std::int64_t Sqlite::integer(const std::string& sql) {
    sqlite3_stmt* query = prepare(sql);
    check(db_.get(), sqlite3_step(query));
    const std::int64_t found = sqlite3_column_int64(query, 0);
    sqlite3_finalize(query);
    return found;
}

sqlite3_stmt* Sqlite::prepare(const std::string& sql) {
    sqlite3_stmt* made = nullptr;
    check(db_.get(), sqlite3_prepare_v3(db_.get(), sql.c_str(), -1, SQLITE_PREPARE_PERSISTENT, &made, nullptr));
    return made;
}

void Sqlite::run(sqlite3_stmt* statement) {
    check(db_.get(), sqlite3_step(statement));
    sqlite3_reset(statement);
}

void Sqlite::bind(sqlite3_stmt* statement, int at, std::string_view text) {
    sqlite3_bind_text64(statement, at, text.data(), text.size(), SQLITE_STATIC, SQLITE_UTF8);
}

void Sqlite::bind(sqlite3_stmt* statement, int at, std::int64_t number) { sqlite3_bind_int64(statement, at, number); }

Bare::Bare(const std::string& path, meter::Durability durability) : Sqlite(path, durability) {
    execute("CREATE TABLE IF NOT EXISTS log(sequence INTEGER PRIMARY KEY, text TEXT NOT NULL)");
    insert_ = prepare("INSERT INTO log(text) VALUES(?)");
}

void Bare::insert(std::string_view text) {
    bind(insert_, 1, text);
    run(insert_);
}

Naive::Naive(const std::string& path) : Sqlite(path, meter::Durability::process) {
    execute("PRAGMA cache_size = -65536");
    execute(
        "CREATE TABLE log(sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, customer TEXT, time INTEGER NOT NULL, value "
        "TEXT, "
        "properties TEXT NOT NULL); CREATE INDEX by_name ON log(name, customer, time)");
    insert_ = prepare("INSERT INTO log(id, name, customer, time, value, properties) VALUES(?, ?, ?, ?, ?, ?)");
}

void Naive::insert(const Sample& sample) {
    const std::string id = sample.id(), name = name_text(sample.name), customer = customer_text(sample.customer), value = sample.value(),
                      properties = sample.properties();
    bind(insert_, 1, id);
    bind(insert_, 2, name);
    bind(insert_, 3, customer);
    bind(insert_, 4, sample.time);
    bind(insert_, 5, value);
    bind(insert_, 6, properties);
    run(insert_);
}

OneRow::OneRow(const std::string& path, meter::Durability durability) : Sqlite(path, durability) {
    execute("CREATE TABLE place(name TEXT PRIMARY KEY, sequence INTEGER) WITHOUT ROWID; INSERT INTO place VALUES('upstream', 0)");
    update_ = prepare("UPDATE place SET sequence = ? WHERE name = 'upstream'");
}

void OneRow::update(std::int64_t value) {
    begin();
    bind(update_, 1, value);
    run(update_);
    commit();
}

std::int64_t file_bytes(const std::string& path) {
    std::int64_t bytes = 0;
    for (const char* suffix : {"", "-wal"}) {
        if (std::filesystem::exists(path + suffix)) bytes += static_cast<std::int64_t>(std::filesystem::file_size(path + suffix));
    }
    return bytes;
}

void remove_database(const std::string& path) {
    for (const char* suffix : {"", "-wal", "-shm", ".wal"}) std::filesystem::remove(path + suffix);
}

}  // namespace bench
