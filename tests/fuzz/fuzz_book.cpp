// Book::lago on any JSON: a book that answers, or an Error that says where.
#include "../../meter.hpp"
#include "fuzz.hpp"

using namespace meter;

std::vector<std::string> meter_fuzz::seeds() {
    return {
        R"({"plan":{"code":"p","name":"P","amount_currency":"EUR","interval":"monthly","amount_cents":1000,"pay_in_advance":false,"charges":[
{"billable_metric_code":"tokens","charge_model":"standard","pay_in_advance":true,"properties":{"amount":"0.05"}}]},
"billable_metrics":[{"code":"tokens","name":"T","aggregation_type":"sum_agg","field_name":"n","expression":"round(event.properties.n * 2, 1) - -1"}],
"subscriptions":[{"external_id":"s","external_customer_id":"c","plan_code":"p","started_at":"2026-01-01T00:00:00Z"}]})",
        R"({"plan":{"code":"p","amount_currency":"JPY","interval":"weekly","charges":[
{"billable_metric_code":"calls","charge_model":"graduated","properties":{"graduated_ranges":[
{"from_value":0,"to_value":10,"per_unit_amount":"1","flat_amount":"2"},{"from_value":11,"to_value":null,"per_unit_amount":"0.5","flat_amount":"0"}]}},
{"billable_metric_code":"calls","charge_model":"package","properties":{"amount":"3","free_units":5,"package_size":10}},
{"billable_metric_code":"calls","charge_model":"percentage","properties":{"rate":"1.5","fixed_amount":"0.1"}},
{"billable_metric_code":"calls","charge_model":"volume","properties":{"volume_ranges":[{"from_value":0,"to_value":null,"per_unit_amount":"1","flat_amount":"1"}]}}]},
"billable_metrics":[{"code":"calls","aggregation_type":"count_agg"}]})",
        R"({"plan":{"code":"p","amount_currency":"KWD","interval":"monthly","charges":[
{"billable_metric_code":"calls","charge_model":"standard","pay_in_advance":true,"prorated":true,"properties":{"amount":"2","pricing_group_keys":["n"]}},
{"billable_metric_code":"tokens","charge_model":"percentage","properties":{"rate":"1","free_units_per_events":2},
"filters":[{"values":{"n":["3"]},"properties":{"rate":"2"}}]}]},
"billable_metrics":[{"code":"calls","aggregation_type":"unique_count_agg","field_name":"n","recurring":true,"filters":[]},
{"code":"tokens","aggregation_type":"weighted_sum_agg","field_name":"n","recurring":true,"rounding_function":"ceil","rounding_precision":2}],
"subscriptions":[{"external_id":"s","started_at":"2026-01-01T00:00:00Z","billing_time":"anniversary","timezone":"+02:00"}]})",
    };
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const json tree = json::parse(meter_fuzz::text_of(data, size), nullptr, false);
    if (tree.is_discarded()) return 0;
    try {
        const Book book = Book::lago(tree);
        Meter m;
        m.load(book);
        m.record_json(R"({"name":"tokens","subscription":"s","properties":{"n":12.5}}
{"name":"calls","subscription":"s","properties":{"n":3}})");
        m.usage({.subscription = "s"}).to_text();
        m.advance_fees({.subscription = "s"}).to_json();
        m.estimate_fees({.name = "tokens", .subscription = "s", .properties = {{"n", 7}}}).to_json();
    } catch (const Error& error) {
        meter_fuzz::require(!error.reason().empty(), "an error without a reason");
        meter_fuzz::require(error.code() != ErrorCode::corrupt && error.code() != ErrorCode::io, error.what());
    }
    return 0;
}
