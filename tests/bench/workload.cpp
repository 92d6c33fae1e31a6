#include "workload.hpp"

#include <algorithm>
#include <cstdio>

namespace bench {

namespace {

constexpr std::int64_t month = 30 * std::int64_t{86'400'000'000}, start = 1'767'225'600'000'000;  // 2026-01-01

// SplitMix64.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL + 0x5DEECE66D) {}
    std::uint64_t operator()() {
        std::uint64_t z = state_ += 0x9E3779B97F4A7C15ULL;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
        z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
        return z ^ z >> 31;
    }
    template <class Number>
    Number below(Number limit) {
        return static_cast<Number>((*this)() % static_cast<std::uint64_t>(limit));
    }

private:
    std::uint64_t state_;
};

std::string padded(const char* prefix, int number, int width) {
    const std::string digits = std::to_string(number);
    return prefix + std::string(static_cast<std::size_t>(std::max(0, width - static_cast<int>(digits.size()))), '0') + digits;
}

std::string hundredths(std::int64_t number) {
    const std::int64_t rest = number % 100;
    std::string text = std::to_string(number / 100) + "." + (rest < 10 ? "0" : "") + std::to_string(rest);
    if (text.back() == '0') text.pop_back();
    return text;
}

}  // namespace

std::string name_text(int name) { return padded("api_call_", name, 2); }
std::string customer_text(int customer) { return padded("customer_", customer, 4); }

std::string Sample::id() const {
    std::array<char, 40> text{};
    std::snprintf(text.data(), text.size(), "%08x-%04x-%04x-%04x-%012llx", static_cast<unsigned>(id_high >> 32),
                  static_cast<unsigned>(id_high >> 16 & 0xFFFF), static_cast<unsigned>(id_high & 0xFFFF), static_cast<unsigned>(id_low >> 48),
                  static_cast<unsigned long long>(id_low & 0xFFFFFFFFFFFF));
    return text.data();
}

std::string Sample::user_text() const { return padded("user_", user, 8); }

std::string Sample::value() const { return hundredths(cents); }

std::string Sample::properties() const {
    return std::string(R"({"latency_ms":)") + hundredths(latency) + R"(,"model":")" + models[model] + R"(","region":")" + regions[region] +
           R"(","status":")" + statuses[status] + R"(","tokens":)" + std::to_string(tokens) + R"(,"user":")" + user_text() + R"("})";
}

std::string Sample::line() const {
    return R"({"id":")" + id() + R"(","name":")" + name_text(name) + R"(","customer":")" + customer_text(customer) + R"(","timestamp":")" +
           meter::Timestamp(time).to_string() + R"(","value":")" + value() + R"(","properties":)" + properties() + "}";
}

std::string Sample::raw() const { return id() + name_text(name) + customer_text(customer) + std::to_string(time) + value(); }

Sample Workload::sample(std::int64_t number) const {
    Random random(static_cast<std::uint64_t>(number));
    Sample made;
    made.id_high = (random() & 0xFFFFFFFFFFFF0FFFULL) | 0x4000;
    made.id_low = (random() & 0x3FFFFFFFFFFFFFFFULL) | 0x8000000000000000ULL;
    made.name = random.below(names);
    made.customer = random.below(customers);
    made.user = random.below(users);
    const std::int64_t late = random.below(10) == 0 ? random.below(std::int64_t{3'600'000'000}) : random.below(std::int64_t{1'000'000});
    made.time = start + std::max<std::int64_t>(0, month / events_ * number - late);
    made.cents = random.below(std::int64_t{100'000});
    made.tokens = 1 + random.below(std::int64_t{8000});
    made.latency = random.below(std::int64_t{200'000});
    made.model = random.below(models.size());
    made.region = random.below(regions.size());
    made.status = random.below(std::size_t{20}) == 0 ? 1 + random.below(std::size_t{2}) : 0;
    return made;
}

void Workload::fill(std::vector<meter::Event>& batch, std::int64_t first, std::size_t count) const {
    batch.resize(count);
    for (meter::Event& event : batch) {
        const Sample made = sample(first++);
        event.id = made.id();
        event.name = name_text(made.name);
        event.customer = customer_text(made.customer);
        event.timestamp = meter::Timestamp(made.time);
        event.value = meter::Decimal::scaled(made.cents, 2);
        event.properties["latency_ms"] = static_cast<double>(made.latency) / 100;
        event.properties["model"] = models[made.model];
        event.properties["region"] = regions[made.region];
        event.properties["status"] = statuses[made.status];
        event.properties["tokens"] = made.tokens;
        event.properties["user"] = made.user_text();
    }
}

std::string Workload::lines(std::int64_t first, std::int64_t count) const {
    std::string text;
    for (std::int64_t i = 0; i < count; ++i) text += sample(first + i).line() + "\n";
    return text;
}

meter::Period Workload::period() { return {meter::Timestamp(start), meter::Timestamp(start + month)}; }

}  // namespace bench
