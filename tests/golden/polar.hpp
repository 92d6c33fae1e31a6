// Polar's vectors of prices: dossier section 14.
#pragma once

namespace golden::polar_vectors {

namespace polar = meter::polar;
using meter::Event;
using meter::Node;
using meter::Timestamp;

json metered_unit(const json& vector) {
    const auto price = polar::read_metered(Node(vector.at("price")));
    const auto consumed = number(vector, "consumed_units");
    const auto priced = polar::price_units(price, consumed, number(vector, "credited_units"));
    return {{"amount", text(priced.amount)}, {"label", polar::label(price, consumed, priced)}};
}

json round_half_away(const json& vector) { return {{"rounded", text(polar::rounded_half_away(number(vector, "value")))}}; }

json tiers(const json& vector) {
    meter::Problems problems;
    const auto tiers = polar::read_tiers(Node(vector.at("tiers")), problems);
    try {
        return {{"amount", text(polar::price_tiers(tiers, number(vector, "quantity")).amount)}};
    } catch (const meter::Error& error) {
        return {{"error", error.reason()}, {"status", 400}};
    }
}

json tiers_validation(const json& vector) {
    meter::Problems problems;
    polar::read_tiers(Node(vector.at("tiers")), problems);
    return {{"error_type", problems.empty() ? json(nullptr) : json(problems.front().code)}};
}

json metered_price_validation(const json& vector) {
    try {
        polar::read_metered(Node(vector.at("price")));
        return {{"accepted", true}};
    } catch (const meter::Error&) {
        return {{"accepted", false}};
    }
}

const Timestamp period_start = Timestamp::from_civil(2024, 1, 1), cutoff = Timestamp::from_civil(2024, 2, 1);

/// What brought an entry about, as the log holds it. After the cutoff means in the next period.
Event event_of(const json& entry, const json& aggregation, std::int64_t place) {
    const auto kind = entry.at("kind").get<std::string>();
    const auto start = entry.value("after_cutoff", false) ? cutoff : period_start;
    Event event{.name = kind == "credit" ? "meter.credited" : kind, .customer = "c1", .timestamp = start + std::chrono::seconds(place)};
    if (kind != "usage") event.source = "system";
    if (kind == "credit")
        event.properties = {{"meter_id", "m"}, {"units", entry.at("value")}};
    else if (aggregation.contains("property"))
        event.properties = {{aggregation.at("property").get<std::string>(), entry.at("value")}};
    return event;
}

/// The prices that are active, of a product whose meter takes every event.
meter::Book book_of(const json& vector) {
    json prices = json::array();
    for (const auto& name : vector.at("active_prices")) {
        prices.push_back(vector.at("prices").at(name.get<std::string>()));
        prices.back().update({{"id", name}, {"meter_id", "m"}});
    }
    return meter::Book::polar(
        {{"product", {{"id", "p"}, {"prices", prices}}}, {"meters", {{{"id", "m"}, {"aggregation", vector.at("meter").at("aggregation")}}}}});
}

/// Entries of sums and counts belong to a price, and wait while that is not on the subscription; an order has no items without entries.
json billing_run(const json& vector) {
    const auto& aggregation = vector.at("meter").at("aggregation");
    const auto& active = vector.at("active_prices");
    const bool by_price = polar::is_summable(Node(aggregation).choice("func", polar::functions));
    std::vector<Event> events;
    for (const auto& entry : vector.at("entries")) {
        const bool waits = by_price && std::find(active.begin(), active.end(), entry.at("price")) == active.end();
        if (waits || entry.value("deleted", false)) continue;
        events.push_back(event_of(entry, aggregation, static_cast<std::int64_t>(events.size())));
    }
    auto items = json::array();
    const meter::UsageQuery asked{.customer = "c1"};
    const auto fees =
        Log(events).ask([&](meter::UsageSource& usage) { return book_of(vector).impl().usage(asked, cutoff - std::chrono::seconds(1), usage); });
    for (const auto& fee : fees.fees) {
        if (fee.events > 0) items.push_back({{"price", fee.charge}, {"amount", text(fee.amount_cents)}});
    }
    return {{"items", items}};
}

}  // namespace golden::polar_vectors

namespace golden {

inline Vendor polar_pricing() {
    using namespace polar_vectors;
    return {"polar",
            {{"metered_unit", metered_unit},
             {"round_half_away", round_half_away},
             {"tiers", tiers},
             {"tiers_validation", tiers_validation},
             {"metered_price_validation", metered_price_validation},
             {"billing_run", billing_run}}};
}

}  // namespace golden
