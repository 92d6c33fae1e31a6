// record_json on any bytes: every line that is not empty gets a receipt, and what is stored can be found, listed and measured.
#include <algorithm>

#include "../../meter.hpp"
#include "fuzz.hpp"

using namespace meter;

std::vector<std::string> meter_fuzz::seeds() {
    return {
        R"({"name":"a"})",
        R"({"id":"x","name":"api_call","customer":"acme","subscription":"s","timestamp":"2026-02-03T04:05:06.789012Z","value":12.50,"source":"d"})",
        R"({"name":"a","timestamp":1767225600.5,"properties":{"n":1e2,"t":"\u00e9\ud83d\ude00\n","l":[1,{"a":[]}],"o":{"p":{}},"b":true,"z":null}})",
        R"({"name":"a","precise_total_amount_cents":"99.125","notice":{"body":"b","severity":"warning","notify":true},"extensions":{"polar":{"x":[1.5]}}})",
        "{\"name\":\"a\",\"properties\":{\"n\":12345678901234567890123456789012345678}}\n\n{\"name\":\"b\"}\r\n{}",
    };
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Meter m(MeterOptions{.chunk_events = 64});
    const auto receipts = m.record_json(meter_fuzz::text_of(data, size));
    std::int64_t stored = 0;
    for (const Receipt& receipt : receipts) {
        if (receipt.status == ReceiptStatus::refused) {
            meter_fuzz::require(!receipt.field.empty() && !receipt.reason.empty(), "a refusal without field and reason");
            continue;
        }
        stored += receipt.status == ReceiptStatus::stored ? 1 : 0;
        const auto found = m.find(receipt.id);
        meter_fuzz::require(found.has_value() && found->sequence == receipt.sequence, "an event that was answered for is not found");
        // What was read back says the same; numbers with more digits than a double has are the one exception.
        const Receipt again = m.record(*found);
        meter_fuzz::require(again.status == ReceiptStatus::duplicate || again.status == ReceiptStatus::conflict, "an event was stored twice");
    }
    meter_fuzz::require(m.list({.limit = 1, .count = true}).total == stored, "the list has not what was stored");
    for (const NameInfo& name : m.list_names().rows) {
        for (const Aggregation aggregation : {Aggregation::count, Aggregation::sum, Aggregation::unique_count}) {
            Metric metric{.code = name.name, .aggregation = aggregation};
            if (aggregation != Aggregation::count) metric.property = "n";
            try {
                const Aggregate answer = m.aggregate(metric, {.bin = Bin::month, .group_by = {"t", "o.p", "source"}});
                std::int64_t events = 0;
                for (const AggregateRow& row : answer.rows) events += row.events;
                meter_fuzz::require(events <= name.occurrences, "more events took part than there are");
            } catch (const Error& error) {
                meter_fuzz::require(error.code() == ErrorCode::overflow, error.what());
            }
        }
    }
    meter_fuzz::require(m.verify().empty(), "verify found a problem");
    return 0;
}
