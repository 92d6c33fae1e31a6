#include "duckdb.hpp"

#include <dlfcn.h>

#include <stdexcept>

namespace bench {

namespace {

// duckdb.h of DuckDB 1.x: a result is owned by the caller, everything else is a handle.
struct Result {
    std::uint64_t unused_counts[3];
    void* unused_columns;
    char* unused_error;
    void* internal;
};
struct Time {
    std::int64_t micros;
};
constexpr int failure = 1;

}  // namespace

struct DuckDb::Api {
    explicit Api(const std::string& path) : library(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
        if (library == nullptr) throw std::runtime_error(dlerror());
        get(version, "duckdb_library_version");
        get(open, "duckdb_open");
        get(close, "duckdb_close");
        get(connect, "duckdb_connect");
        get(disconnect, "duckdb_disconnect");
        get(query, "duckdb_query");
        get(destroy_result, "duckdb_destroy_result");
        get(result_error, "duckdb_result_error");
        get(row_count, "duckdb_row_count");
        get(column_count, "duckdb_column_count");
        get(value_varchar, "duckdb_value_varchar");
        get(free, "duckdb_free");
        get(appender_create, "duckdb_appender_create");
        get(appender_error, "duckdb_appender_error");
        get(appender_end_row, "duckdb_appender_end_row");
        get(appender_destroy, "duckdb_appender_destroy");
        get(append_int64, "duckdb_append_int64");
        get(append_timestamp, "duckdb_append_timestamp");
        get(append_text, "duckdb_append_varchar_length");
    }
    template <class Function>
    void get(Function*& function, const char* name) const {
        function = reinterpret_cast<Function*>(dlsym(library, name));
        if (function == nullptr) throw std::runtime_error(std::string("no ") + name + " in the DuckDB library");
    }

    void* library;  // stays: DuckDB's threads may outlive a database
    const char* (*version)() = nullptr;
    int (*open)(const char* path, void** database) = nullptr;
    void (*close)(void** database) = nullptr;
    int (*connect)(void* database, void** connection) = nullptr;
    void (*disconnect)(void** connection) = nullptr;
    int (*query)(void* connection, const char* sql, Result* result) = nullptr;
    void (*destroy_result)(Result* result) = nullptr;
    const char* (*result_error)(Result* result) = nullptr;
    std::uint64_t (*row_count)(Result* result) = nullptr;
    std::uint64_t (*column_count)(Result* result) = nullptr;
    char* (*value_varchar)(Result* result, std::uint64_t column, std::uint64_t row) = nullptr;
    void (*free)(void* memory) = nullptr;
    int (*appender_create)(void* connection, const char* schema, const char* table, void** appender) = nullptr;
    const char* (*appender_error)(void* appender) = nullptr;
    int (*appender_end_row)(void* appender) = nullptr;
    int (*appender_destroy)(void** appender) = nullptr;
    int (*append_int64)(void* appender, std::int64_t value) = nullptr;
    int (*append_timestamp)(void* appender, Time value) = nullptr;
    int (*append_text)(void* appender, const char* text, std::uint64_t size) = nullptr;
};

DuckDb::DuckDb(const std::string& library, const std::string& path) : api_(std::make_unique<Api>(library)) {
    if (api_->open(path.c_str(), &database_) == failure) throw std::runtime_error("DuckDB cannot open " + path);
    if (api_->connect(database_, &connection_) == failure) throw std::runtime_error("DuckDB cannot connect");
    execute(
        "CREATE TABLE log(id UUID, name VARCHAR, customer VARCHAR, time TIMESTAMP, value DECIMAL(18, 2), latency_ms DECIMAL(18, 2), model VARCHAR, "
        "region VARCHAR, status VARCHAR, tokens BIGINT, user_id VARCHAR)");
}

DuckDb::~DuckDb() {
    if (connection_ != nullptr) api_->disconnect(&connection_);
    if (database_ != nullptr) api_->close(&database_);
}

std::string DuckDb::version() const { return api_->version(); }

void DuckDb::load(const Workload& workload) {
    void* appender = nullptr;
    if (api_->appender_create(connection_, nullptr, "log", &appender) == failure) throw std::runtime_error(api_->appender_error(appender));
    int failed = 0;
    const auto text = [&](const std::string& value) { failed |= api_->append_text(appender, value.data(), value.size()); };
    for (std::int64_t i = 0; i < workload.events(); ++i) {
        const Sample sample = workload.sample(i);
        text(sample.id());
        text(name_text(sample.name));
        text(customer_text(sample.customer));
        failed |= api_->append_timestamp(appender, {sample.time});
        text(sample.value());
        text(meter::Decimal::scaled(sample.latency, 2).to_string());
        text(models[sample.model]);
        text(regions[sample.region]);
        text(statuses[sample.status]);
        failed |= api_->append_int64(appender, sample.tokens);
        text(sample.user_text());
        failed |= api_->appender_end_row(appender);
        if (failed != 0) throw std::runtime_error(std::string("DuckDB: ") + api_->appender_error(appender));
    }
    if (api_->appender_destroy(&appender) == failure) throw std::runtime_error("DuckDB: the last rows were refused");
    execute("CHECKPOINT");
}

void DuckDb::execute(const std::string& sql) {
    Result result{};
    const bool failed = api_->query(connection_, sql.c_str(), &result) == failure;
    const std::string error = failed ? api_->result_error(&result) : "";
    api_->destroy_result(&result);
    if (failed) throw std::runtime_error("DuckDB: " + error);
}

std::vector<std::vector<std::string>> DuckDb::rows(const std::string& sql) {
    Result result{};
    if (api_->query(connection_, sql.c_str(), &result) == failure) throw std::runtime_error(std::string("DuckDB: ") + api_->result_error(&result));
    std::vector<std::vector<std::string>> found;
    for (std::uint64_t row = 0; row < api_->row_count(&result); ++row) {
        auto& values = found.emplace_back();
        for (std::uint64_t column = 0; column < api_->column_count(&result); ++column) {
            char* text = api_->value_varchar(&result, column, row);
            values.emplace_back(text == nullptr ? "" : text);
            api_->free(text);
        }
    }
    api_->destroy_result(&result);
    return found;
}

}  // namespace bench
