// DuckDB from its shared library, found at run time: the few functions of its C API (duckdb.h) that are used here.
#ifndef METER_BENCH_DUCKDB_HPP
#define METER_BENCH_DUCKDB_HPP

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "workload.hpp"

namespace bench {

class DuckDb {
public:
    // An on-disk database with typed columns, empty. Throws std::runtime_error.
    DuckDb(const std::string& library, const std::string& path);
    ~DuckDb();
    DuckDb(const DuckDb&) = delete;
    DuckDb& operator=(const DuckDb&) = delete;

    std::string version() const;
    void load(const Workload& workload);
    void execute(const std::string& sql);
    std::vector<std::vector<std::string>> rows(const std::string& sql);  // values as text, "" for NULL

private:
    struct Api;
    std::unique_ptr<Api> api_;
    void* database_ = nullptr;
    void* connection_ = nullptr;
};

}  // namespace bench

#endif
