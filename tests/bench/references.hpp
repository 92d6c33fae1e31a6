// What meter is measured against inside SQLite: the barest insert there is, the layout one would begin with, and small updates.
#ifndef METER_BENCH_REFERENCES_HPP
#define METER_BENCH_REFERENCES_HPP

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "workload.hpp"

struct sqlite3;
struct sqlite3_stmt;

namespace bench {

// SQLite, or it throws std::runtime_error.
class Sqlite {
public:
    // With the pragmas of a database of meter's with default options: page size and auto_vacuum as found in one, WAL, a cache of that size.
    Sqlite(const std::string& path, meter::Durability durability);
    ~Sqlite();
    Sqlite(const Sqlite&) = delete;
    Sqlite& operator=(const Sqlite&) = delete;

    void execute(const std::string& sql);
    std::int64_t integer(const std::string& sql);
    void begin() { run(begin_); }
    void commit() { run(commit_); }

protected:
    sqlite3_stmt* prepare(const std::string& sql);
    void run(sqlite3_stmt* statement);  // to its end, and resets it
    static void bind(sqlite3_stmt* statement, int at, std::string_view text);
    static void bind(sqlite3_stmt* statement, int at, std::int64_t number);

private:
    struct Close {
        void operator()(sqlite3* db) const;
    };
    std::unique_ptr<sqlite3, Close> db_;
    sqlite3_stmt *begin_ = nullptr, *commit_ = nullptr;
};

// A prepared INSERT into (rowid, text): the limit inside SQLite.
class Bare : public Sqlite {
public:
    Bare(const std::string& path, meter::Durability durability);
    void insert(std::string_view text);

private:
    sqlite3_stmt* insert_;
};

// JSON text, a unique index of ids, an index of (name, customer, time).
class Naive : public Sqlite {
public:
    explicit Naive(const std::string& path);
    void insert(const Sample& sample);

private:
    sqlite3_stmt* insert_;
};

// One row that is updated, as the least one can do to remember something.
class OneRow : public Sqlite {
public:
    OneRow(const std::string& path, meter::Durability durability);
    void update(std::int64_t value);

private:
    sqlite3_stmt* update_;
};

std::int64_t file_bytes(const std::string& path);
// The database and what SQLite keeps beside it.
void remove_database(const std::string& path);

}  // namespace bench

#endif
