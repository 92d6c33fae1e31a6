// The bundled transport against a server that misbehaves.
#include "meter.hpp"
#include "support/scratch.hpp"
#include "support/server.hpp"
#include "testing.hpp"

#include <fstream>

#include <sys/wait.h>

using namespace meter;
using namespace std::chrono_literals;
using support::Fault;
using support::Reply;

namespace {

HttpRequest post(const std::string& url, std::string body = "{}") {
    HttpRequest request;
    request.url = url;
    request.body = std::move(body);
    return request;
}

#ifdef METER_CURL

constexpr auto enough = 60s;  // for an exchange that nothing hinders, on however slow a machine

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST_CASE("transport: a request arrives as it was made, the answer comes back whole") {
    support::Server server([](const support::Request& r) { return Reply{.status = 207, .body = "got " + r.body, .headers = {{"X-One", "1"}}}; });
    auto transport = curl_transport();
    HttpRequest request = post(server.url() + "/a/b", "{\"n\":1}");
    request.headers = {{"Content-Type", "application/json"}, {"Authorization", "Bearer k"}};
    const HttpResponse answer = transport->exchange(request, enough);
    CHECK(answer.status == 207);
    CHECK(answer.body == "got {\"n\":1}");
    CHECK(answer.header("x-one") == std::string_view("1"));
    CHECK_FALSE(answer.header("x-two"));
    const auto seen = server.requests().at(0);
    CHECK(seen.method == "POST");
    CHECK(seen.path == "/a/b");
    CHECK(seen.headers.at("authorization") == "Bearer k");
    CHECK(seen.headers.at("content-type") == "application/json");
    CHECK(seen.headers.count("expect") == 0);
}

TEST_CASE("transport: a GET has no body") {
    support::Server server([](const support::Request& r) { return Reply{.body = r.method + std::to_string(r.body.size())}; });
    HttpRequest request = post(server.url(), "");
    request.method = "GET";
    CHECK(curl_transport()->exchange(request, enough).body == "GET0");
}

TEST_CASE("transport: connections are kept, except for requests that must not be sent twice") {
    support::Server server([](const support::Request&) { return Reply{.body = "{}"}; });
    auto transport = curl_transport();
    for (int i = 0; i < 5; ++i) CHECK(transport->exchange(post(server.url()), enough).status == 200);
    CHECK(server.connections() == 1);
    HttpRequest once = post(server.url());
    once.once = true;
    for (int i = 0; i < 3; ++i) CHECK(transport->exchange(once, enough).status == 200);
    CHECK(server.connections() == 4);
}

TEST_CASE("transport: a request that must not be sent twice is not, even when a kept connection dies under it") {
    std::atomic<int> calls{0};
    support::Server server([&](const support::Request&) { return ++calls == 1 ? Reply{.body = "{}"} : Reply{.fault = Fault::close_silently}; });
    auto transport = curl_transport();
    CHECK(transport->exchange(post(server.url()), enough).status == 200);
    HttpRequest once = post(server.url());
    once.once = true;
    const HttpResponse answer = transport->exchange(once, enough);
    CHECK(answer.status == 0);
    CHECK(answer.sent);
    CHECK(calls == 2);
}

TEST_CASE("transport: nothing listens: not sent") {
    const support::ClosedPort port;
    const HttpResponse answer = curl_transport()->exchange(post("http://127.0.0.1:" + std::to_string(port.number())), enough);
    CHECK(answer.status == 0);
    CHECK_FALSE(answer.sent);
    CHECK_FALSE(answer.error.empty());
}

TEST_CASE("transport: no such host: not sent") {
    const HttpResponse answer = curl_transport()->exchange(post("http://host.invalid/"), enough);
    CHECK(answer.status == 0);
    CHECK_FALSE(answer.sent);
}

TEST_CASE("transport: the timeout holds against a server that never answers") {
    support::Server server([](const support::Request&) { return Reply{.fault = Fault::never_answer}; });
    HttpResponse answer;
    for (auto timeout = 300ms; !answer.sent && timeout < enough; timeout *= 3) {  // longer where sending alone takes that long
        const auto start = std::chrono::steady_clock::now();
        answer = curl_transport()->exchange(post(server.url()), timeout);
        CHECK(std::chrono::steady_clock::now() - start < timeout + enough / 2);
        CHECK(answer.status == 0);
    }
    CHECK(answer.sent);
}

TEST_CASE("transport: the timeout holds against a server that answers byte by byte") {
    support::Server server([](const support::Request&) { return Reply{.body = std::string(1000, 'x'), .fault = Fault::slow, .pause = 20ms}; });
    const auto start = std::chrono::steady_clock::now();
    CHECK(curl_transport()->exchange(post(server.url()), 300ms).status == 0);
    CHECK(seconds_since(start) < 15);  // the answer takes 20 s and more
}

TEST_CASE("transport: a slow answer within the timeout is an answer") {
    support::Server server([](const support::Request&) { return Reply{.body = "{\"a\":1}", .fault = Fault::slow, .pause = 1ms}; });
    CHECK(curl_transport()->exchange(post(server.url()), enough).body == "{\"a\":1}");
}

TEST_CASE("transport: an exchange can be cancelled from outside") {
    support::Server server([](const support::Request&) { return Reply{.fault = Fault::never_answer}; });
    std::atomic<bool> stop{false};
    HttpRequest request = post(server.url());
    request.cancelled = [&] { return stop.load(); };
    std::thread other([&] {
        std::this_thread::sleep_for(200ms);
        stop = true;
    });
    const auto start = std::chrono::steady_clock::now();
    CHECK(curl_transport()->exchange(request, enough).status == 0);
    CHECK(seconds_since(start) < 30);
    other.join();
}

TEST_CASE("transport: an answer cut short is no answer") {
    const Fault fault = GENERATE(Fault::close_silently, Fault::reset, Fault::half_body, Fault::reset_mid_body);
    support::Server server([&](const support::Request&) { return Reply{.body = std::string(1000, 'x'), .fault = fault}; });
    const HttpResponse answer = curl_transport()->exchange(post(server.url()), enough);
    CHECK(answer.status == 0);
    CHECK(answer.sent);
    CHECK(answer.body.empty());
}

TEST_CASE("transport: something that is not HTTP is no answer") {
    support::Server server([](const support::Request&) { return Reply{.raw = "220 smtp.example ESMTP\r\n\r\n"}; });
    CHECK(curl_transport()->exchange(post(server.url()), enough).status == 0);
}

TEST_CASE("transport: an answer over the limit is no answer, in body or headers") {
    support::Server body([](const support::Request&) { return Reply{.body = std::string(100000, 'x')}; });
    support::Server head([](const support::Request&) { return Reply{.headers = {{"X-Long", std::string(50000, 'y')}}}; });
    auto transport = curl_transport({.max_response_bytes = 10000});
    CHECK(transport->exchange(post(body.url()), enough).status == 0);
    CHECK(transport->exchange(post(head.url()), enough).status == 0);
}

TEST_CASE("transport: redirects are not followed") {
    support::Server other([](const support::Request&) { return Reply{.body = "{}"}; });
    const int status = GENERATE(301, 302, 303, 307, 308);
    support::Server server([&](const support::Request&) { return Reply{.status = status, .headers = {{"Location", other.url()}}}; });
    HttpRequest request = post(server.url());
    request.headers = {{"Authorization", "Bearer secret"}};
    CHECK(curl_transport()->exchange(request, enough).status == status);
    CHECK(other.count() == 0);
}

TEST_CASE("transport: other protocols are refused") {
    CHECK(curl_transport()->exchange(post("file:///etc/passwd"), enough).status == 0);
    CHECK(curl_transport()->exchange(post("gopher://127.0.0.1/"), enough).status == 0);
}

TEST_CASE("transport: one transport serves many threads") {
    support::Server server([](const support::Request& r) { return Reply{.body = r.body}; });
    auto transport = curl_transport();
    std::atomic<int> good{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 6; ++t)
        threads.emplace_back([&, t] {
            for (int i = 0; i < 20; ++i) {
                const std::string body = std::to_string(t) + ":" + std::to_string(i);
                if (transport->exchange(post(server.url(), body), enough).body == body) ++good;
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(good == 120);
}

// A TLS server is the openssl program's, with a certificate nobody signed.
struct TlsServer {
    meter_test::Scratch scratch;
    std::string certificate = scratch.path("cert.pem");
    int port = 0;
    pid_t child = -1;
    int output = -1;

    TlsServer() {
        const std::string key = scratch.path("key.pem");
        const std::string make =
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout " + key + " -out " +
            certificate + " 2>/dev/null";
        int ends[2];
        if (std::system(make.c_str()) != 0 || ::pipe(ends) != 0) return;
        child = ::fork();
        if (child == 0) {
            if (::dup2(ends[1], STDOUT_FILENO) < 0 || ::dup2(ends[1], STDERR_FILENO) < 0) ::_exit(1);
            ::close(ends[0]);
            ::execlp("openssl", "openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", certificate.c_str(), "-key", key.c_str(), "-www", nullptr);
            ::_exit(127);
        }
        ::close(ends[1]);
        output = ends[0];
        port = read_port();
    }
    TlsServer(const TlsServer&) = delete;
    TlsServer& operator=(const TlsServer&) = delete;
    ~TlsServer() {
        if (child > 0) {
            ::kill(child, SIGKILL);
            ::waitpid(child, nullptr, 0);
        }
        if (output >= 0) ::close(output);
    }
    std::string url() const { return "https://127.0.0.1:" + std::to_string(port) + "/"; }

private:
    // From the line "ACCEPT 127.0.0.1:port", which it prints when it listens; 0 when it ends without one.
    int read_port() const {
        std::string printed;
        char byte = 0;
        while (::read(output, &byte, 1) == 1) {
            if (byte != '\n') {
                printed += byte;
                continue;
            }
            if (printed.starts_with("ACCEPT ")) return std::stoi(printed.substr(printed.rfind(':') + 1));
            printed.clear();
        }
        return 0;
    }
};

TEST_CASE("transport: a certificate that nobody signed ends the exchange before anything is sent") {
    TlsServer server;
    if (server.port == 0) {
        WARN("no openssl program: not tested");
        return;
    }
    HttpRequest request = post(server.url());
    request.headers = {{"Authorization", "Bearer secret"}};
    const HttpResponse refused = curl_transport()->exchange(request, enough);
    CHECK(refused.status == 0);
    CHECK_FALSE(refused.sent);
    INFO(refused.error);
    CHECK(refused.error.find("ertificate") != std::string::npos);

    request.method = "GET";
    request.body.clear();
    CHECK(curl_transport({.ca_file = server.certificate})->exchange(request, enough).status == 200);
}

#else

TEST_CASE("transport: without libcurl the bundled transport says so") {
    try {
        curl_transport();
        FAIL("no error");
    } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::unsupported);
        CHECK(error.field() == "transport");
    }
}

#endif

TEST_CASE("transport: headers are found in any case") {
    const HttpResponse answer{.status = 200, .headers = {{"retry-AFTER", "3"}}};
    CHECK(answer.header("Retry-After") == std::string_view("3"));
    CHECK_FALSE(answer.header("Retry"));
    CHECK(post("x").method == "POST");
}

}  // namespace
