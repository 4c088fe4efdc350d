#include "launcher/head_time.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "launcher/step_time.hpp"

namespace reprise {

namespace {

/// Of its roofline, what a restricted kernel is expected to reach: the bar that docs/kernels.md sets, not a
/// measurement.
constexpr double kHeadShare = 0.7;
/// Of the rate of large products, what a CPU's full head reaches with its blocks of logits; fitted on one measured
/// step.
constexpr double kCpuFullShare = 0.85;
/// Tokens whose candidates share one visit of d_weight's rows on a CPU.
constexpr double kSuperTile = 1024.0;

/// Sets of neighbours overlap: n tokens list as many ids as growth(n) that do not, from the simulation of sets of a
/// peaked language model (V = 128,256, K = 100 and 200). Between and beyond the points by powers.
double growth(double tokens) {
  constexpr std::array<std::array<double, 2>, 7> kPoints = {
      {{1, 1}, {8, 4.4}, {64, 19}, {128, 28}, {512, 54.5}, {8192, 450}, {32768, 1137}}};
  std::size_t i = 1;
  while (i + 1 < kPoints.size() && tokens > kPoints[i][0]) ++i;
  const auto& [x0, y0] = kPoints[i - 1];
  const auto& [x1, y1] = kPoints[i];
  const double power = std::log(y1 / y0) / std::log(x1 / x0);
  return y0 * std::pow(std::max(1.0, tokens) / x0, power);
}

double full_seconds(const Hardware& hardware, const TimedHead& head) {
  const double hidden = static_cast<double>(head.hidden), rows = head.vocab_rows;
  const std::int64_t bytes = head.element_bytes;
  double seconds = product_seconds(hardware, head.targets, hidden, rows, bytes);                    // d_hidden
  if (!head.frozen) seconds += product_seconds(hardware, rows, hidden, head.targets, bytes, true);  // d_weight
  seconds += (head.products - 2.0) * product_seconds(hardware, head.targets, rows, hidden, bytes);
  if (!hardware.gpu) seconds /= kCpuFullShare;
  constexpr double kLogitBytes = 16.0;  // written, read for sums, read and written for gradients, float32
  return seconds + head.passes * kLogitBytes * head.targets * rows / (hardware.memory_share * hardware.memory_rate);
}

double restricted_seconds(const Hardware& hardware, const TimedHead& head) {
  const double hidden = static_cast<double>(head.hidden), share = head.vocab_rows / head.vocab;
  const double row = hidden * static_cast<double>(head.element_bytes);
  const bool tiles = head.kind == TimedHead::Kind::kTile;
  const double tile = tiles ? static_cast<double>(head.tile_tokens) : 1.0;
  const double visits = head.targets / tile * union_size(head, tile) * share;  // rows, once a tile that lists them

  // A wide tile reads its rows twice; tensor cores take 8 tokens at least.
  const double reads = hardware.gpu && tile > 8.0 ? 2.0 : 1.0;
  const double lanes = hardware.gpu && tiles ? std::max(8.0, tile) : tile;
  const double flops = 4.0 * hidden * visits * lanes / (tiles ? hardware.mma_rate : hardware.vector_rate);
  const double forward = std::max(reads * row * visits / hardware.l2_rate, flops);

  // d_weight is float32. On a CPU its rows are visited once a super-tile.
  const double span = hardware.gpu ? head.targets : std::min(head.targets, kSuperTile);
  const double listed = head.targets / std::max(1.0, span) * union_size(head, span) * share;
  const double pairs = head.targets * head.set_size * share;
  double gradient = 8.0 * hidden * listed / (hardware.memory_share * hardware.memory_rate);
  // The hottest rows, about half of the pairs, are a dense product; the others read hidden states from shared memory.
  if (hardware.gpu) gradient += 0.44 * pairs * row / hardware.shared_rate;
  if (head.frozen) gradient = 0.0;
  double seconds = (forward + gradient) / (hardware.gpu ? kHeadShare : 1.0);
  if (head.negatives > 0.0) {
    const double products = head.frozen ? 2.0 : 3.0;
    seconds += products * product_seconds(hardware, head.targets, head.negatives * share, hidden, head.element_bytes);
  }
  return seconds;
}

}  // namespace

double union_size(const TimedHead& head, double tokens) {
  if (tokens <= 0.0) return 0.0;
  const double drawn = head.set_size * (head.uniform_sets ? tokens : growth(tokens));
  return tokens <= 1.0 ? std::min(head.set_size, head.vocab) : head.vocab * (1.0 - std::exp(-drawn / head.vocab));
}

double head_seconds(const Hardware& hardware, const TimedHead& head) {
  if (head.targets <= 0.0) return 0.0;
  return head.kind == TimedHead::Kind::kFull ? full_seconds(hardware, head) : restricted_seconds(hardware, head);
}

}  // namespace reprise
