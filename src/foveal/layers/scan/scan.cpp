// The selective scan on the CPU, forward and backward, with a plain C interface for cpu.py. reference.py has the
// formula.
//
// A vector holds one channel per lane. The channels of a group are processed in blocks of the vector's width, which are
// distributed over threads. Tokens are processed in tiles, transposed so that each token is a vector. States are
// processed in runs of at most RUN, whose values stay in registers over a tile.
//
// Sums over tokens are compensated (Kahan, 1965), and for decays close to 1, exp(x) - 1 is computed too. Without this,
// the rounding errors of 65,536 small steps would spoil the result in float32.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int64_t TILE = 128;                // tokens
constexpr int RUN = 4;                       // states
constexpr int64_t STATES_PER_THREAD = 1 << 18;  // at least: about 0.1 ms of work, where starting a thread costs 0.02 ms

template <class T>
struct Lanes {
    static constexpr int width = BYTES / sizeof(T);
    typedef T vector __attribute__((vector_size(BYTES)));
    typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> word;
    typedef word words __attribute__((vector_size(BYTES)));
};
template <class T>
using Vec = typename Lanes<T>::vector;

template <class T>
Vec<T> all(T value) {
    return Vec<T>{} + value;
}

// ---- functions of vectors

// exp(x) = 2^k exp(r), |r| <= ln(2) / 2.
template <class T>
struct Decay {
    Vec<T> whole, rest;              // exp(x) and exp(r) - 1, each to full relative precision
    typename Lanes<T>::words small;  // whether k = 0; then `rest` is exp(x) - 1
};

inline Decay<float> decay(Vec<float> x) {
    x = x < -88.f ? all(-88.f) : x;  // 2^k becomes 0 there; NaN is kept
    // Adding 1.5 * 2^23 rounds to a whole number in the last bits. Adding 127 more makes them a float's exponent.
    const float magic = 12582912.f + 127.f;
    const Vec<float> shifted = x * 1.44269504f + magic;
    const Vec<float> k = shifted - magic;
    const Vec<float> r = x - k * 0.693145752f - k * 1.42860677e-6f;
    // minimax polynomial, error below 1.3e-8
    const Vec<float> rest = r + r * r * ((((1.38825213e-3f * r + 8.36652074e-3f) * r + 4.16671999e-2f) * r +
                                          1.66665436e-1f) * r + 4.99999982e-1f);
    Lanes<float>::words bits;
    std::memcpy(&bits, &shifted, BYTES);
    const int32_t infinite = 0x4B400000 + 255;
    bits = (bits > infinite ? Lanes<float>::words{} + infinite : bits) << 23;
    Vec<float> power;
    std::memcpy(&power, &bits, BYTES);  // 2^k
    return {power * rest + power, rest, k == 0.f};
}

inline Decay<double> decay(Vec<double> x) {
    Decay<double> result;
    result.small = x > -0.34;
    for (int lane = 0; lane < Lanes<double>::width; ++lane) {
        result.whole[lane] = std::exp(x[lane]);
        result.rest[lane] = std::expm1(x[lane]);
    }
    return result;
}

inline Vec<float> softplus(Vec<float> x) {
    const Vec<float> e = decay(x > 0.f ? -x : x).whole;
    const Vec<float> s = e / (e + 2.f), q = s * s;  // log(1 + e) = 2 artanh(s), s <= 1/3
    // minimax polynomial, error below 4.5e-9
    const Vec<float> series = ((1.40059982e-1f * q + 1.40009017e-1f) * q + 2.00107637e-1f) * q + 3.33332081e-1f;
    return (x > 0.f ? x : all(0.f)) + 2.f * s * (q * series + 1.f);
}

inline Vec<double> softplus(Vec<double> x) {
    for (int lane = 0; lane < Lanes<double>::width; ++lane) {
        x[lane] = x[lane] > 20. ? x[lane] : std::log1p(std::exp(x[lane]));  // linear above 20, as in torch
    }
    return x;
}

template <class T, int BYTE_COUNT = BYTES>
T sum(const void* lanes) {  // adds the halves until one lane is left
    if constexpr (BYTE_COUNT == sizeof(T)) {
        return *static_cast<const T*>(lanes);
    } else {
        typedef T Half __attribute__((vector_size(BYTE_COUNT / 2)));
        Half low, high;
        std::memcpy(&low, lanes, sizeof low);
        std::memcpy(&high, static_cast<const char*>(lanes) + sizeof low, sizeof high);
        low += high;
        return sum<T, BYTE_COUNT / 2>(&low);
    }
}

// The next state, state * d.whole + input. For small steps the rounding error goes into `lost`, which is added to the
// next input. For larger steps the state decays fast, and its rounding error with it.
template <class T>
inline Vec<T> next(Vec<T> state, const Decay<T>& d, Vec<T> input, Vec<T>& lost) {
    input += lost;
    const Vec<T> result = d.whole * state + input;
    lost = d.small ? d.rest * state + (state - result) + input : Vec<T>{};
    return result;
}

// ---- the arrays

template <class T>
struct Problem {
    const T *u, *delta, *A, *B, *C, *D, *bias;  // contiguous; D and bias may be null
    int64_t batch, channels, groups, states, length;
    bool use_softplus;

    int64_t per_group() const { return channels / groups; }
    int64_t blocks_per_group() const { return (per_group() + Lanes<T>::width - 1) / Lanes<T>::width; }
    int64_t blocks() const { return batch * groups * blocks_per_group(); }
    int64_t tiles() const { return (length + TILE - 1) / TILE; }
};

template <class T>
struct Block {
    int64_t index, image, group, channel;
    int lanes;

    Block(const Problem<T>& p, int64_t index) : index(index) {
        const int64_t in_group = index % p.blocks_per_group() * Lanes<T>::width;
        const int64_t row = index / p.blocks_per_group();
        image = row / p.groups;
        group = row % p.groups;
        channel = group * p.per_group() + in_group;
        lanes = int(std::min<int64_t>(Lanes<T>::width, p.per_group() - in_group));
    }
    int64_t at(const Problem<T>& p, int64_t token) const { return (image * p.channels + channel) * p.length + token; }
    int64_t matrix(const Problem<T>& p) const { return (image * p.groups + group) * p.states * p.length; }
};

template <class T, int... I>
void zip(Vec<T> a, Vec<T> b, Vec<T>* to, std::integer_sequence<int, I...>) {  // a0 b0 a1 b1 ...
    constexpr int width = sizeof...(I);
#if defined(__clang__)
    to[0] = __builtin_shufflevector(a, b, (I % 2 * width + I / 2)...);
    to[1] = __builtin_shufflevector(a, b, (I % 2 * width + I / 2 + width / 2)...);
#else
    typedef typename Lanes<T>::words Words;
    to[0] = __builtin_shuffle(a, b, Words{(I % 2 * width + I / 2)...});
    to[1] = __builtin_shuffle(a, b, Words{(I % 2 * width + I / 2 + width / 2)...});
#endif
}

template <class T>
void transpose(Vec<T>* square) {
    constexpr int width = Lanes<T>::width;
    for (int done = 1; done < width; done *= 2) {
        Vec<T> zipped[width];
        for (int i = 0; i < width / 2; ++i)
            zip<T>(square[i], square[i + width / 2], zipped + 2 * i, std::make_integer_sequence<int, width>{});
        std::copy(zipped, zipped + width, square);
    }
}

// Loads `count` elements of each row into `count` vectors: one row per lane, rows are `stride` apart.
template <class T>
void load(const T* rows, int64_t stride, int lanes, int64_t count, Vec<T>* to) {
    constexpr int width = Lanes<T>::width;
    int64_t i = 0;
    for (; lanes == width && i + width <= count; i += width) {
        Vec<T> square[width];
        for (int lane = 0; lane < width; ++lane) std::memcpy(square + lane, rows + lane * stride + i, BYTES);
        transpose<T>(square);
        std::copy(square, square + width, to + i);
    }
    T* out = reinterpret_cast<T*>(to);
    std::fill(to + i, to + count, Vec<T>{});
    for (int lane = 0; lane < lanes; ++lane)
        for (int64_t j = i; j < count; ++j) out[j * width + lane] = rows[lane * stride + j];
}

// Stores `count` vectors into rows, the reverse of load.
template <class T>
void store(const Vec<T>* from, int64_t stride, int lanes, int64_t count, T* rows) {
    constexpr int width = Lanes<T>::width;
    int64_t i = 0;
    for (; lanes == width && i + width <= count; i += width) {
        Vec<T> square[width];
        std::copy(from + i, from + i + width, square);
        transpose<T>(square);
        for (int lane = 0; lane < width; ++lane) std::memcpy(rows + lane * stride + i, square + lane, BYTES);
    }
    const T* in = reinterpret_cast<const T*>(from);
    for (int lane = 0; lane < lanes; ++lane)
        for (int64_t j = i; j < count; ++j) rows[lane * stride + j] = in[j * width + lane];
}

template <class T>
struct Tile {
    int64_t start, count;
    Vec<T> u[TILE], dt[TILE], gain[TILE];  // gain = dt * u

    void read(const Problem<T>& p, const Block<T>& block, int64_t tile, Vec<T> bias) {
        start = tile * TILE;
        count = std::min(TILE, p.length - start);
        load(p.u + block.at(p, start), p.length, block.lanes, count, u);
        load(p.delta + block.at(p, start), p.length, block.lanes, count, dt);
        for (int64_t t = 0; t < count; ++t) {
            dt[t] += bias;
            if (p.use_softplus) dt[t] = softplus(dt[t]);
            gain[t] = dt[t] * u[t];
        }
    }
};

template <class T>
Vec<T> per_channel(const T* values, const Block<T>& block) {
    Vec<T> result{};
    if (values) load(values + block.channel, 1, block.lanes, 1, &result);
    return result;
}

template <class T>
std::vector<Vec<T>> rows_of_a(const Problem<T>& p, const Block<T>& block) {
    std::vector<Vec<T>> rows(p.states);
    load(p.A + block.channel * p.states, p.states, block.lanes, p.states, rows.data());
    return rows;
}

// Calls work(std::integral_constant<int, K>, n) for runs of K = 4, 2 or 1 states, of which n is the first.
template <class Work>
void in_runs(int64_t states, Work work) {
    int64_t n = 0;
    for (; n + RUN <= states; n += RUN) work(std::integral_constant<int, RUN>{}, n);
    if (n + 2 <= states) work(std::integral_constant<int, 2>{}, n), n += 2;
    if (n < states) work(std::integral_constant<int, 1>{}, n);
}

// ---- forward

// Advances K states over a tile and adds their outputs to y. y may be null: then only the states are computed.
template <int K, class T>
void advance(const Problem<T>& p, const Tile<T>& tile, const Vec<T>* A, const T* B, const T* C, Vec<T>* state,
             Vec<T>* lost, Vec<T>* y) {
    Vec<T> h[K], low[K];
    for (int k = 0; k < K; ++k) h[k] = state[k], low[k] = lost[k];
    for (int64_t t = 0; t < tile.count; ++t) {
        Vec<T> out{};
        for (int k = 0; k < K; ++k) {
            h[k] = next(h[k], decay(tile.dt[t] * A[k]), tile.gain[t] * B[k * p.length + t], low[k]);
            out += h[k] * C[k * p.length + t];
        }
        if (y) y[t] += out;
    }
    for (int k = 0; k < K; ++k) state[k] = h[k], lost[k] = low[k];
}

template <class T>
void forward_block(const Problem<T>& p, const Block<T>& block, T* y, T* last) {
    const std::vector<Vec<T>> A = rows_of_a(p, block);
    std::vector<Vec<T>> state(p.states), lost(p.states);
    const Vec<T> skip = per_channel(p.D, block), bias = per_channel(p.bias, block);
    Tile<T> tile;
    Vec<T> out[TILE];
    for (int64_t index = 0; index < p.tiles(); ++index) {
        tile.read(p, block, index, bias);
        for (int64_t t = 0; t < tile.count; ++t) out[t] = skip * tile.u[t];
        in_runs(p.states, [&](auto run, int64_t n) {
            const int64_t row = block.matrix(p) + n * p.length + tile.start;
            advance<run()>(p, tile, &A[n], p.B + row, p.C + row, &state[n], &lost[n], out);
        });
        store(out, p.length, block.lanes, tile.count, y + block.at(p, tile.start));
    }
    store(state.data(), p.states, block.lanes, p.states, last + (block.image * p.channels + block.channel) * p.states);
}

// ---- backward

template <class T>
struct Gradients {
    const T *y, *last;         // gradients of the outputs
    T *u, *delta, *A, *B, *C;  // A: (batch, D, N), B and C: (batch, G, blocks per group, N, L); cpu.py sums over the
                               // batch (A) and over the blocks (B, C)
};

template <class T>
Decay<T> none() {
    return {all(T(1)), Vec<T>{}, Vec<T>{} == T(0)};
}

// Values that the backward pass carries from tile to tile, for each state: the gradient of the state and its rounding
// error, the gradient of A and its rounding error, and the decay of the first token of the tile that was processed last.
template <class T>
struct Carried {
    Vec<T> state, lost{}, a{}, a_lost{};
    Decay<T> decay = none<T>();
};

// Computes the gradients of K states back over a tile; `h` holds the states before the tile.
template <int K, class T>
void retreat(const Problem<T>& p, const Tile<T>& tile, const Vec<T>* A, const T* B, const T* C, const Vec<T>* h,
             const Vec<T>* dy, Carried<T>* carried, Vec<T>* dgain, Vec<T>* ddt, T* dB, T* dC) {
    Vec<T> states[TILE + 1][K];
    Decay<T> decays[TILE][K];
    Vec<T> low[K] = {};
    for (int k = 0; k < K; ++k) states[0][k] = h[k];
    for (int64_t t = 0; t < tile.count; ++t)
        for (int k = 0; k < K; ++k) {
            decays[t][k] = decay(tile.dt[t] * A[k]);
            states[t + 1][k] = next(states[t][k], decays[t][k], tile.gain[t] * B[k * p.length + t], low[k]);
        }
    for (int k = 0; k < K; ++k) {
        Carried<T>& c = carried[k];
        Vec<T> a{};
        for (int64_t t = tile.count - 1; t >= 0; --t) {
            c.state = next(c.state, c.decay, dy[t] * C[k * p.length + t], c.lost);
            c.decay = decays[t][k];
            const Vec<T> db = tile.gain[t] * c.state, dc = dy[t] * states[t + 1][k];
            dB[k * p.length + t] = sum<T>(&db);
            dC[k * p.length + t] = sum<T>(&dc);
            const Vec<T> exponent = c.state * c.decay.whole * states[t][k];
            dgain[t] += c.state * B[k * p.length + t];
            ddt[t] += exponent * A[k];
            a += exponent * tile.dt[t];
        }
        c.a = next(c.a, none<T>(), a, c.a_lost);
    }
}

template <class T>
void backward_block(const Problem<T>& p, const Block<T>& block, const Gradients<T>& g) {
    const std::vector<Vec<T>> A = rows_of_a(p, block);
    const Vec<T> skip = per_channel(p.D, block), bias = per_channel(p.bias, block);
    const int64_t state_row = (block.image * p.channels + block.channel) * p.states;
    const int64_t out_matrix = block.index * p.states * p.length;
    Tile<T> tile;
    std::vector<Vec<T>> before(p.tiles() * p.states), state(p.states), lost(p.states);
    for (int64_t index = 0; index < p.tiles(); ++index) {
        std::copy(state.begin(), state.end(), before.begin() + index * p.states);
        if (index + 1 == p.tiles()) break;
        tile.read(p, block, index, bias);
        in_runs(p.states, [&](auto run, int64_t n) {
            const int64_t row = block.matrix(p) + n * p.length + tile.start;
            advance<run()>(p, tile, &A[n], p.B + row, p.C + row, &state[n], &lost[n], static_cast<Vec<T>*>(nullptr));
        });
    }

    std::vector<Carried<T>> carried(p.states);
    load(g.last + state_row, p.states, block.lanes, p.states, state.data());
    for (int64_t n = 0; n < p.states; ++n) carried[n].state = state[n];
    Vec<T> dy[TILE], dgain[TILE], ddt[TILE];
    for (int64_t index = p.tiles() - 1; index >= 0; --index) {
        tile.read(p, block, index, bias);
        load(g.y + block.at(p, tile.start), p.length, block.lanes, tile.count, dy);
        std::fill(dgain, dgain + tile.count, Vec<T>{});
        std::fill(ddt, ddt + tile.count, Vec<T>{});
        in_runs(p.states, [&](auto run, int64_t n) {
            const int64_t row = n * p.length + tile.start, in = block.matrix(p) + row, out = out_matrix + row;
            retreat<run()>(p, tile, &A[n], p.B + in, p.C + in, &before[index * p.states + n], dy, &carried[n], dgain,
                           ddt, g.B + out, g.C + out);
        });
        for (int64_t t = 0; t < tile.count; ++t) {
            ddt[t] += dgain[t] * tile.u[t];
            dgain[t] = dgain[t] * tile.dt[t] + skip * dy[t];  // now the gradient of u
            if (!p.use_softplus) continue;
            const Decay<T> d = decay(-tile.dt[t]);
            ddt[t] *= d.small ? -d.rest : T(1) - d.whole;  // the slope of softplus is 1 - exp(-softplus)
        }
        store(dgain, p.length, block.lanes, tile.count, g.u + block.at(p, tile.start));
        store(ddt, p.length, block.lanes, tile.count, g.delta + block.at(p, tile.start));
    }
    for (int64_t n = 0; n < p.states; ++n) state[n] = carried[n].a;
    store(state.data(), p.states, block.lanes, p.states, g.A + state_row);
}

// ---- threads

// Calls work(block) for all blocks on up to `threads` threads; returns whether there was enough memory.
template <class T, class Work>
bool share(const Problem<T>& p, int64_t threads, Work work) {
    threads = std::min({threads, p.blocks(), p.batch * p.channels * p.states * p.length / STATES_PER_THREAD});
    std::atomic<int64_t> next_index{0};
    std::atomic<bool> enough_memory{true};
    const auto process_blocks = [&] {
        try {
            for (int64_t index; (index = next_index++) < p.blocks();) work(Block<T>(p, index));
        } catch (const std::exception&) {
            enough_memory = false;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < threads; ++i) others.emplace_back(process_blocks);
    } catch (const std::exception&) {
        // The system starts no more threads: those that run do the work.
    }
    process_blocks();
    for (std::thread& other : others) other.join();
    return enough_memory;
}

}  // namespace

// All arrays are contiguous. lanes_ returns the number of channels in a block; forward_ and backward_ return whether
// there was enough memory.
#define SCAN(T, SUFFIX)                                                                                               \
    extern "C" int64_t lanes_##SUFFIX() { return Lanes<T>::width; }                                                   \
    extern "C" bool forward_##SUFFIX(const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,     \
                                     const T* bias, int64_t batch, int64_t channels, int64_t groups, int64_t states, \
                                     int64_t length, bool use_softplus, int64_t threads, T* y, T* last) {            \
        const Problem<T> p{u, delta, A, B, C, D, bias, batch, channels, groups, states, length, use_softplus};       \
        return share(p, threads, [&](const Block<T>& block) { forward_block(p, block, y, last); });                  \
    }                                                                                                                 \
    extern "C" bool backward_##SUFFIX(const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,    \
                                      const T* bias, int64_t batch, int64_t channels, int64_t groups,                \
                                      int64_t states, int64_t length, bool use_softplus, int64_t threads,            \
                                      const T* dy, const T* dlast, T* du, T* ddelta, T* dA, T* dB, T* dC) {          \
        const Problem<T> p{u, delta, A, B, C, D, bias, batch, channels, groups, states, length, use_softplus};       \
        const Gradients<T> g{dy, dlast, du, ddelta, dA, dB, dC};                                                     \
        return share(p, threads, [&](const Block<T>& block) { backward_block(p, block, g); });                       \
    }

SCAN(float, f32)
SCAN(double, f64)
