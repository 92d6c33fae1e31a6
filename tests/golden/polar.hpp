// Polar's vectors of prices: dossier section 14.
#pragma once

namespace golden::polar_vectors {

namespace polar = meter::polar;
using meter::Event;
using meter::Node;
using meter::Timestamp;

json metered_unit(const json& vector) {
    const auto price = polar::read_metered(Node(vector.at("price")));
    const auto consumed = number(vector, "consumed_units"), credited = number(vector, "credited_units");
    const auto priced = polar::price_units(price, consumed, credited);
    return {{"amount", text(priced.amount)}, {"label", polar::label(price, polar::units_to_pay(consumed, credited), priced)}};
}

/// The unit is a meter's; its price stands beside it or is one like others.
json display_scale(const json& vector) {
    const auto unit = polar::read_unit(Node(vector.value("meter", vector)));
    const auto amount = number(vector.value("price", vector), "unit_amount") * unit.scale;
    json answer{{"scale", text(unit.scale)}, {"multiplier", text(unit.scale)}, {"label", unit.label}};
    for (const char* name : {"amount", "display_amount", "displayed_amount", "display_cents", "displayed_cents", "scaled_amount", "displayed"})
        answer[name] = text(amount);
    return answer;
}

json round_half_away(const json& vector) { return {{"rounded", text(polar::rounded_half_away(number(vector, "value")))}}; }

json tiers(const json& vector) {
    const auto tiers = polar::read_tiers(Node(vector.at("tiers")));
    try {
        return {{"amount", text(polar::price_tiers(tiers, number(vector, "quantity")).amount)}};
    } catch (const meter::Error& error) {
        return {{"error", error.reason()}, {"status", 400}};
    }
}

json tiers_validation(const json& vector) {
    try {
        polar::read_tiers(Node(vector.at("tiers")));
        return {{"error_type", nullptr}};
    } catch (const meter::Error& error) {
        return {{"error_type", error.reason()}};
    }
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

/// A product of this one price, whose meter takes every event.
meter::Book book_of(const json& vector, const std::string& name) {
    auto price = vector.at("prices").at(name);
    price.update({{"id", name}, {"meter_id", "m"}});
    return meter::Book::polar({{"product", {{"id", "p"}, {"prices", json::array({price})}}},
                               {"meters", {{{"id", "m"}, {"aggregation", vector.at("meter").at("aggregation")}}}}});
}

/// Whether there is an entry at all when the order is made.
bool is_there(const json& entry) {
    return entry.value("pending", true) && !entry.value("billed", false) && !entry.value("deleted", false) &&
           !entry.value("created_after_cutoff", false);
}

/// What the entries come to at one price.
json item_of(const json& vector, const std::string& price, const std::vector<json>& entries) {
    std::vector<Event> events;
    for (const auto& entry : entries)
        events.push_back(event_of(entry, vector.at("meter").at("aggregation"), static_cast<std::int64_t>(events.size())));
    const auto book = book_of(vector, price);
    const auto fees =
        Log(events).ask([&](meter::UsageSource& usage) { return book.impl().usage({.customer = "c1"}, cutoff - std::chrono::seconds(1), usage); });
    return {{"price", price}, {"amount", text(fees.fees.at(0).amount_cents)}};
}

/// Entries of sums and counts belong to a price, and wait while that is not on the subscription; those of other meters are taken together.
json billing_run(const json& vector) {
    const auto& active = vector.at("active_prices");
    const bool by_price = polar::is_summable(Node(vector.at("meter").at("aggregation")).choice("func", polar::functions));
    std::vector<std::pair<std::string, std::vector<json>>> lines;
    for (const bool late : {false, true}) {
        for (const auto& entry : vector.at("entries")) {
            const json price = by_price ? entry.at("price") : active.empty() ? json() : active.at(0);
            if (!is_there(entry) || entry.value("after_cutoff", false) != late) continue;
            if (std::find(active.begin(), active.end(), price) == active.end()) continue;
            auto line = std::find_if(lines.begin(), lines.end(), [&](const auto& each) { return each.first == price; });
            if (line == lines.end() && late) continue;
            if (line == lines.end()) line = lines.insert(line, {price.get<std::string>(), {}});
            line->second.push_back(entry);
        }
    }
    auto items = json::array();
    for (const auto& [price, entries] : lines) items.push_back(item_of(vector, price, entries));
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
             {"billing_run", billing_run},
             {"display_scale", display_scale}}};
}

}  // namespace golden
