// The steps of voxscale/matching/{softassign,rounding,two_opt}.py for one graph after another, on one thread.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "wide.h"

namespace {

// What two matrices have in common, entry by entry, and the way back: both rows are read from end to end.
// Worths are multiples of 2^-20 and shares of 2^-24, so these sums are exact, in whatever order nodes stand.
WIDE void spread(const float* edge, const float* end_row, const float* begin_row, double* out, double* back, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const double value = edge[i];
        out[i] += value * end_row[i];
        back[i] += value * begin_row[i];
    }
}

WIDE void multiply(const double* matrix, const double* by, double* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const double* row = matrix + i * n;
        double a = 0, b = 0, c = 0, d = 0;
        int64_t j = 0;
        for (; j + 4 <= n; j += 4) {
            a += row[j] * by[j];
            b += row[j + 1] * by[j + 1];
            c += row[j + 2] * by[j + 2];
            d += row[j + 3] * by[j + 3];
        }
        for (; j < n; ++j) a += row[j] * by[j];
        out[i] = (a + b) + (c + d);
    }
}

WIDE void multiply_transposed(const double* matrix, const double* by, double* out, int64_t n) {
    std::fill(out, out + n, 0.0);
    for (int64_t i = 0; i < n; ++i) {
        const double* row = matrix + i * n;
        const double factor = by[i];
        for (int64_t j = 0; j < n; ++j) out[j] += row[j] * factor;
    }
}

// exp of numbers from -700 to 0: 2^round(x / ln 2) times a polynomial; relative error below 1e-10.
WIDE void exponentials(double* values, int64_t count) {
    constexpr double MAGIC = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to the nearest whole number
    for (int64_t i = 0; i < count; ++i) {
        const double x = std::max(values[i], -700.0);
        const double shifted = x * 1.4426950408889634 + MAGIC;
        const double whole = shifted - MAGIC;
        const double r = x - whole * 0.6931471805599453;
        double p = 1.0 / 362880;
        p = p * r + 1.0 / 40320;
        p = p * r + 1.0 / 5040;
        p = p * r + 1.0 / 720;
        p = p * r + 1.0 / 120;
        p = p * r + 1.0 / 24;
        p = p * r + 1.0 / 6;
        p = p * r + 0.5;
        p = p * r + 1.0;
        p = p * r + 1.0;
        union { double real; int64_t bits; } bias, scale;
        bias.real = shifted;
        scale.bits = (bias.bits + 1023) << 52;
        values[i] = p * scale.real;
    }
}

struct Graph {
    int64_t nodes, n, k, m, width;
    const float *vertex, *edge;
    const int64_t *source, *target;

    const float* pair(int64_t i, int64_t p, int64_t a) const { return edge + ((i * k + p) * m + a) * width; }
};

class Work {
  public:
    explicit Work(const Graph& g)
        : share(g.nodes * g.nodes), total(g.nodes * g.nodes), soft(g.nodes * g.nodes), rows(g.nodes), columns(g.nodes),
          ends(g.n * g.m * g.width), begins(ends.size()), out(ends.size()), back(ends.size()), order(g.m * g.nodes),
          moved(g.nodes * g.nodes) {}
    std::vector<float> share;
    std::vector<double> total, soft, rows, columns;
    std::vector<float> ends, begins;
    std::vector<double> out, back;
    std::vector<int32_t> order;
    std::vector<double> moved;
};

void gradient(const Graph& g, Work& w) {
    const int64_t line = g.m * g.width;
    for (int64_t i = 0; i < g.n; ++i) {
        const float* share = &w.share[i * g.nodes];
        for (int64_t e = 0; e < line; ++e) w.ends[i * line + e] = share[g.target[e]];
        for (int64_t a = 0; a < g.m; ++a) std::fill_n(&w.begins[i * line + a * g.width], g.width, share[a]);
    }
    std::fill(w.out.begin(), w.out.end(), 0.0);
    std::fill(w.back.begin(), w.back.end(), 0.0);
    for (int64_t i = 0; i < g.n; ++i)
        for (int64_t p = 0; p < g.k; ++p) {
            const int64_t end = g.source[i * g.k + p] * line;
            spread(g.pair(i, p, 0), &w.ends[end], &w.begins[i * line], &w.out[i * line], &w.back[end], line);
        }
    std::copy_n(g.vertex, g.nodes * g.nodes, w.total.begin());
    for (int64_t i = 0; i < g.n; ++i) {
        double* total = &w.total[i * g.nodes];
        for (int64_t a = 0; a < g.m; ++a)
            for (int64_t q = 0; q < g.width; ++q) {
                const int64_t e = a * g.width + q;
                total[a] += w.out[i * line + e];
                total[g.target[e]] += w.back[i * line + e];
            }
    }
}

// Sinkhorn as factors of rows and columns; rows and columns of the logarithms begin at most at 0, and reach it.
void normalise(Work& w, int64_t n, double beta, int64_t rounds) {
    std::vector<double>& columns = w.columns;
    std::fill(columns.begin(), columns.end(), -std::numeric_limits<double>::infinity());
    for (int64_t i = 0; i < n; ++i) {
        const double top = *std::max_element(&w.total[i * n], &w.total[i * n] + n);
        for (int64_t j = 0; j < n; ++j) {
            const double value = beta * (w.total[i * n + j] - top);
            w.soft[i * n + j] = value;
            columns[j] = std::max(columns[j], value);
        }
    }
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) w.soft[i * n + j] -= columns[j];
    exponentials(w.soft.data(), n * n);
    // The first normalisation of rows sees the logarithms before the columns' tops were taken away.
    for (int64_t j = 0; j < n; ++j) columns[j] = std::exp(std::max(columns[j], -700.0));
    constexpr double LEAST = 1e-290, MOST = 1e290;
    for (int64_t round = 0; round < rounds; ++round) {
        multiply(w.soft.data(), columns.data(), w.rows.data(), n);
        for (double& x : w.rows) x = 1 / std::clamp(x, LEAST, MOST);
        multiply_transposed(w.soft.data(), w.rows.data(), columns.data(), n);
        for (double& x : columns) x = 1 / std::clamp(x, LEAST, MOST);
    }
    constexpr double ROUND = 402653184.0;  // 1.5 * 2^28: adding it rounds to multiples of 2^-24, see `spread`
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j)
            w.share[i * n + j] = static_cast<float>(w.soft[i * n + j] * w.rows[i] * columns[j] + ROUND - ROUND);
}

// Of equal shares, such as two halves of a node that both want, the pair of nodes that is worth more comes first.
void round_greedily(const Graph& g, Work& w, int64_t* match) {
    const int64_t n = g.nodes;
    const auto greater = [&](int64_t i, int64_t j, int64_t k, int64_t l) {
        const float one = w.share[i * n + j], other = w.share[k * n + l];
        return one > other || (one == other && g.vertex[i * n + j] > g.vertex[k * n + l]);
    };
    std::vector<int64_t> best(n, -1);
    std::vector<char> done(n, 0), gone(n, 0);
    for (int64_t step = 0; step < n; ++step) {
        int64_t row = -1;
        for (int64_t i = 0; i < n; ++i) {
            if (done[i]) continue;
            if (best[i] < 0 || gone[best[i]]) {
                best[i] = -1;
                for (int64_t j = 0; j < n; ++j)
                    if (!gone[j] && (best[i] < 0 || greater(i, j, i, best[i]))) best[i] = j;
            }
            if (row < 0 || greater(i, best[i], row, best[row])) row = i;
        }
        match[row] = best[row];
        done[row] = gone[best[row]] = 1;
    }
}

// Adds what the edges that begin or end at i would be worth, if i alone moved to a; `sign` takes one node's part away.
void add_edges_to(const Graph& g, Work& w, const int64_t* match, int64_t j, double sign) {
    const int64_t at = match[j];
    for (int64_t i = 0; i < g.n; ++i)  // edges i -> j: their end is known, their begin moves
        for (int64_t p = 0; p < g.k; ++p) {
            if (g.source[i * g.k + p] != j) continue;
            for (int64_t a = 0; a < g.m; ++a) {
                const int32_t q = w.order[a * g.nodes + at];
                if (q < g.width) w.moved[i * g.nodes + a] += sign * g.pair(i, p, a)[q];
            }
        }
    if (j >= g.n || at >= g.m) return;
    for (int64_t p = 0; p < g.k; ++p) {  // edges j -> i: their begin is known, their end moves
        double* row = &w.moved[g.source[j * g.k + p] * g.nodes];
        for (int64_t q = 0; q < g.width; ++q) row[g.target[at * g.width + q]] += sign * g.pair(j, p, at)[q];
    }
}

double between(const Graph& g, const Work& w, int64_t i, int64_t p, int64_t a, int64_t b) {
    if (a >= g.m) return 0;
    const int32_t q = w.order[a * g.nodes + b];
    return q < g.width ? g.pair(i, p, a)[q] : 0;
}

void exchange(const Graph& g, Work& w, int64_t* match, int64_t steps) {
    const int64_t n = g.nodes;
    std::fill(w.order.begin(), w.order.end(), static_cast<int32_t>(g.width));
    for (int64_t a = 0; a < g.m; ++a)
        for (int64_t q = 0; q < g.width; ++q) w.order[a * n + g.target[a * g.width + q]] = static_cast<int32_t>(q);
    std::copy_n(g.vertex, n * n, w.moved.begin());
    for (int64_t j = 0; j < n; ++j) add_edges_to(g, w, match, j, 1);
    std::vector<double>& mended = w.total;  // not needed any more
    std::vector<double> crossed(n * n);
    for (int64_t step = 0; step < steps; ++step) {
        std::fill(mended.begin(), mended.end(), 0.0);
        for (int64_t i = 0; i < g.n; ++i)
            for (int64_t p = 0; p < g.k; ++p) {
                const int64_t j = g.source[i * g.k + p], a = match[i], b = match[j];
                const double value = between(g, w, i, p, a, b) + between(g, w, i, p, b, a);
                mended[i * n + j] += value;
                mended[j * n + i] += value;
            }
        for (int64_t i = 0; i < n; ++i) {
            const double stay = w.moved[i * n + match[i]];
            for (int64_t j = 0; j < n; ++j) crossed[i * n + j] = w.moved[i * n + match[j]] - stay;
        }
        double gain = 0;
        int64_t first = -1, second = -1;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = i + 1; j < n; ++j) {
                const double value = crossed[i * n + j] + crossed[j * n + i] + mended[i * n + j];
                if (value > gain) gain = value, first = i, second = j;
            }
        if (first < 0) return;
        for (const int64_t j : {first, second}) add_edges_to(g, w, match, j, -1);
        std::swap(match[first], match[second]);
        for (const int64_t j : {first, second}) add_edges_to(g, w, match, j, 1);
    }
}

}  // namespace

// Solves `batch` problems: shape = {N, n, k, m, width}; arrays as in voxscale/matching/problem.py; match is (batch, N).
extern "C" void match_graphs(const float* vertex, const float* edge, const int64_t* source, const int64_t* target,
                             int64_t batch, const int64_t* shape, int64_t steps, int64_t rounds, double first,
                             double last, int64_t exchanges, int64_t* match) {
    Graph g = {shape[0], shape[1], shape[2], shape[3], shape[4], vertex, edge, source, target};
    Work w(g);
    for (int64_t b = 0; b < batch; ++b) {
        std::fill(w.share.begin(), w.share.end(), 1.0f / static_cast<float>(g.nodes));
        for (int64_t step = 0; step < steps; ++step) {
            const double place = static_cast<double>(step) / static_cast<double>(std::max<int64_t>(steps - 1, 1));
            gradient(g, w);
            normalise(w, g.nodes, first * std::pow(last / first, place), rounds);
        }
        round_greedily(g, w, match);
        if (exchanges > 0) exchange(g, w, match, exchanges);
        g.vertex += g.nodes * g.nodes;
        g.edge += g.n * g.k * g.m * g.width;
        g.source += g.n * g.k;
        g.target += g.m * g.width;
        match += g.nodes;
    }
}
