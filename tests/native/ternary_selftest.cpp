// Every kernel of this processor against the scalar one, in buffers of exact size, for sanitizers.
// Prints a hash of all outputs, which is the same on every machine. Any argument leaves out the
// fork, which emulators of a processor may not survive.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "dispatch.hpp"
#include "pack.hpp"
#include "pool.hpp"
#include "product.hpp"

using namespace weightguard::ternary;

namespace {

uint32_t state = 1;
uint32_t next() {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

void fail(const char* what, const char* kernel) {
    std::printf("FAILED: %s with %s\n", what, kernel);
    std::exit(1);
}

struct Sample {
    std::vector<int8_t> weights;
    std::vector<float> scales;
    std::vector<uint8_t> packed;
    Matrix matrix;

    Sample(Coding coding, int64_t rows, int64_t columns, bool each_row)
        : weights(static_cast<size_t>(rows * columns)),
          scales(static_cast<size_t>(each_row ? rows : 1)) {
        for (auto& w : weights)
            w = static_cast<int8_t>(coding == Coding::ternary ? static_cast<int>(next() % 3) - 1
                                                              : static_cast<int>(next() % 256) - 128);
        for (auto& s : scales) s = static_cast<float>(next() % 1000 + 1) / 512.0f;
        const auto check = check_vector(weights.data(), rows, columns);
        const Layout layout{coding, rows, columns, digits_needed(check, traits(coding).radix)};
        packed.resize(static_cast<size_t>(layout.bytes()));
        pack(layout, weights.data(), check, packed.data());
        if (stored_check_vector(layout, packed.data()) != check) fail("check rows", "packing");
        std::vector<int8_t> back(weights.size());
        unpack(layout, packed.data(), back.data());
        if (back != weights) fail("unpack", "packing");
        matrix = {layout, packed.data(), scales.data(), each_row && rows > 1,
                  scale_check(scales.data(), static_cast<int64_t>(scales.size()))};
    }
};

std::vector<uint8_t> activations(Number number, int64_t count) {
    std::vector<uint8_t> x(static_cast<size_t>(count) * (number == Number::f32 ? 4 : 2));
    for (int64_t i = 0; i < count; ++i) {
        // binary32, or the upper or a middle half of one: finite, of moderate exponent
        const uint32_t bits = (next() & 0x807fffu) << 8 | (next() & 0xffu) | (120u + next() % 10) << 23;
        const uint32_t finite = (bits & 0x807fffffu) | (120u + next() % 10) << 23;
        const uint16_t half = static_cast<uint16_t>(number == Number::bf16 ? finite >> 16
                                                                            : (next() & 0xb3ffu));
        if (number == Number::f32) std::memcpy(x.data() + 4 * i, &finite, 4);
        else std::memcpy(x.data() + 2 * i, &half, 2);
    }
    return x;
}

std::vector<uint8_t> outputs(const Sample& sample, const std::vector<uint8_t>& x, Number in,
                             Number out, int64_t tokens, bool verify, const Kernel& kernel,
                             int threads) {
    std::vector<uint8_t> y(static_cast<size_t>(tokens * sample.matrix.layout.rows) *
                           (out == Number::f32 ? 4 : 2));
    const Call call{&sample.matrix, x.data(), in, tokens, y.data(), out, verify, threads, {}};
    if (!multiply(call, kernel).empty()) fail("a false alarm", kernel.name);
    return y;
}

uint64_t hash = 1469598103934665603u;
void take(const std::vector<uint8_t>& bytes) {
    for (uint8_t b : bytes) hash = (hash ^ b) * 1099511628211u;
}

void compare(const std::vector<const Kernel*>& kernels) {
    const int64_t shapes[][2] = {{1, 1}, {5, 3}, {16, 16}, {17, 33}, {48, 170}, {70, 260}, {33, 1040}};
    for (Coding coding : {Coding::ternary, Coding::bytes})
        for (const auto& shape : shapes) {
            const Sample sample(coding, shape[0], shape[1], next() % 2);
            take(sample.packed);
            for (int64_t tokens = 1; tokens <= 19; tokens += tokens < 9 ? 1 : 5) {
                const auto in = static_cast<Number>(tokens % 3), out = static_cast<Number>(tokens / 3 % 3);
                const auto x = activations(in, tokens * shape[1]);
                const auto expected =
                    outputs(sample, x, in, out, tokens, true, scalar_kernel, 1);
                take(expected);
                for (const Kernel* kernel : kernels)
                    for (bool verify : {true, false})
                        if (outputs(sample, x, in, out, tokens, verify, *kernel, 1) != expected)
                            fail("other outputs", kernel->name);
            }
        }
}

void drill(const Kernel& kernel) {
    const Sample sample(Coding::ternary, 40, 100, true);
    const auto x = activations(Number::f32, 10 * 100);
    std::vector<float> y(10 * 40);
    for (int site = 0; site < 3; ++site) {
        const Call call{&sample.matrix, x.data(), Number::f32, 10, y.data(), Number::f32, true, 2,
                        {{static_cast<Site>(site), 9, site == 2 ? 0 : 39, 1}}};
        if (multiply(call, kernel).empty()) fail("a drill unseen", kernel.name);
    }
}

void share(const Kernel& kernel, bool with_fork) {
    const Sample sample(Coding::ternary, 900, 512, false);
    const auto x = activations(Number::f32, 40 * 512);
    const auto expected = outputs(sample, x, Number::f32, Number::f32, 40, true, kernel, 1);
    for (int threads : {2, 3, 5})
        for (int turn = 0; turn < 10; ++turn)
            if (outputs(sample, x, Number::f32, Number::f32, 40, true, kernel, threads) != expected)
                fail("threads", kernel.name);
    if (!with_fork) return;
    const pid_t child = fork();
    const bool right = outputs(sample, x, Number::f32, Number::f32, 40, true, kernel, 3) == expected;
    if (child == 0) _exit(right ? 0 : 1);
    int status = 1;
    waitpid(child, &status, 0);
    if (!right || status != 0) fail("after a fork", kernel.name);
}

}  // namespace

int main(int argc, char**) {
    const Kernel* available[kMostKernels];
    const int n = available_kernels(available);
    std::vector<const Kernel*> kernels(available, available + n);
#ifdef WG_TEST_256  // AVX-VNNI's code, compiled for the same instructions of AVX-512
    if (kernels.back() == &avx512_kernel) kernels.push_back(&avxvnni_kernel);
#endif
    compare(kernels);
    for (const Kernel* kernel : kernels) drill(*kernel);
    share(*kernels.back(), argc == 1);
    for (const Kernel* kernel : kernels) std::printf("%s ", kernel->name);
    std::printf("\n%016llx\n", static_cast<unsigned long long>(hash));
    return 0;
}
