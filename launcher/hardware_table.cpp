#include "launcher/hardware_table.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {

namespace {

/// Of a link's data-sheet rate that large messages reach, by the bus bandwidths that nccl-tests commonly shows.
constexpr double kLinkShare = 0.8;

Hardware h100() {
  Hardware h;
  h.name = "h100";
  h.title = "H100 SXM 80 GB, 8 a node, NVLink 4, 400 Gb/s a GPU";
  h.memory_bytes = 80e9;  // data sheet, as the four rates below
  h.memory_rate = 3.35e12;
  h.matrix_rate = 989.4e12;
  h.vector_rate = 67e12;
  h.node_rate = 450e9;  // 900 GB/s both ways
  h.watts = 700.0;
  h.matrix_share = 0.66;
  h.evidence = "fitted on one published row (Nemotron-4 15B on 16 GPUs), checked on the others";
  h.validated = true;
  h.mma_rate = 613e12;      // 0.62 of the peak: arXiv 2402.13499
  h.l2_rate = 5.5e12;       // assumed
  h.shared_rate = 29.7e12;  // 128 bytes a multiprocessor and cycle at 1.755 GHz
  h.processors = 132;
  h.net_rate = 50e9;  // ConnectX-7, one a GPU (DGX H100)
  h.node_latency = 10e-6;
  h.net_latency = 15e-6;
  return h;
}

Hardware h200() {
  Hardware h = h100();
  h.name = "h200";
  h.title = "H200 SXM 141 GB, 8 a node, NVLink 4, 400 Gb/s a GPU";
  h.memory_bytes = 141e9;
  h.memory_rate = 4.8e12;
  h.evidence = "taken from H100, whose multiprocessors and power limit it shares; no published run was compared";
  h.validated = false;
  return h;
}

/// The H100 of Meta's Grand Teton at 500 W, on which torchtitan's tables were measured.
Hardware h100_500w() {
  Hardware h = h100();
  h.name = "h100-500w";
  h.title = "H100 SXM 96 GB HBM2e at 500 W (Grand Teton), 8 a node, NVLink 4, 400 Gb/s a GPU";
  h.memory_bytes = 96e9;
  h.memory_rate = 2.4e12;
  h.watts = 500.0;
  h.matrix_share = 0.50;
  h.evidence = "fitted on one published row (Llama 3.1 8B on 8 GPUs, compiled), checked on the others";
  return h;
}

Hardware h100_pcie() {
  Hardware h = h100();
  h.name = "h100-pcie";
  h.title = "H100 PCIe 80 GB, 8 a node, PCIe 5, 400 Gb/s a GPU";
  h.memory_rate = 2.0e12;
  h.matrix_rate = 756e12;
  h.vector_rate = 51e12;
  h.mma_rate = 469e12;
  h.l2_rate = 4.2e12;
  h.shared_rate = 22.0e12;
  h.processors = 114;
  h.node_rate = 64e9;
  h.watts = 350.0;
  h.matrix_share = 0.50;  // 350 W: as the SXM card at 500 W, or less
  h.evidence = "assumed; no published run was compared";
  h.validated = false;
  return h;
}

Hardware b200() {
  Hardware h = h100();
  h.name = "b200";
  h.title = "B200 180 GB, 8 a node, NVLink 5, 400 Gb/s a GPU";
  h.memory_bytes = 180e9;
  h.memory_rate = 8.0e12;
  h.matrix_rate = 2250e12;
  h.mma_rate = 720e12;  // as many FLOP a multiprocessor and cycle as H100
  h.vector_rate = 75e12;
  h.l2_rate = 6.5e12;
  h.shared_rate = 35.0e12;
  h.processors = 148;
  h.node_rate = 900e9;
  h.watts = 1000.0;
  h.evidence = "assumed as on H100; no published run was compared";
  h.validated = false;
  return h;
}

Hardware a100() {
  Hardware h = h100();
  h.name = "a100";
  h.title = "A100 SXM 80 GB, 8 a node, NVLink 3, 200 Gb/s a GPU";
  h.memory_rate = 2.039e12;
  h.matrix_rate = h.mma_rate = 312e12;
  h.vector_rate = 19.5e12;
  h.l2_rate = 4.0e12;  // assumed
  h.shared_rate = 19.5e12;
  h.processors = 108;
  h.node_rate = 300e9;
  h.net_rate = 25e9;
  h.watts = 400.0;
  h.matrix_share = 0.78;
  h.evidence = "fitted on one published row (MPT 7B on 8 GPUs), checked on the others";
  return h;
}

/// The machine of docs/results.md, where our own steps were measured.
Hardware cpu() {
  Hardware h;
  h.name = "cpu";
  h.title = "2 cores of an AMD EPYC with AVX-512, one machine (docs/results.md)";
  h.gpu = false;
  h.ranks_per_node = 2;
  h.memory_bytes = 8e9;
  h.memory_rate = h.l2_rate = h.shared_rate = 45.3e9;  // copy
  h.memory_share = 1.0;
  h.matrix_rate = 197e9;  // sgemm in a training step on the quiet machine; alone it was 168 in docs/results.md
  h.mma_rate = h.vector_rate = 237e9;  // 2 cores, 32 FLOP a cycle at 3.7 GHz
  h.matrix_share = 1.0;
  h.node_rate = 5e9;
  h.node_latency = 20e-6;
  h.net_rate = 1.25e9;  // assumed: 10 Gb/s between machines
  h.net_latency = 30e-6;
  h.evidence = "rate of products fitted on one of our own measured steps (51M, tiles), copy as measured";
  h.validated = true;
  return h;
}

}  // namespace

const std::vector<Hardware>& hardware_table() {
  static const std::vector<Hardware> table = {h100(), h200(), b200(), a100(), h100_500w(), h100_pcie(), cpu()};
  return table;
}

const Hardware& find_hardware(std::string_view name) {
  std::vector<std::string> names;
  for (const Hardware& hardware : hardware_table()) {
    if (hardware.name == name) return hardware;
    names.push_back(hardware.name);
  }
  fail(ErrorKind::kUsage, "--hardware {}: not in the table, which has {}", name, fmt::join(names, ", "));
}

Hardware rank_share(const Hardware& machine, std::int64_t ranks, std::int64_t threads) {
  if (machine.gpu) return machine;
  Hardware share = machine;
  const auto cores = static_cast<double>(machine.ranks_per_node);
  const double busy = std::min(cores, static_cast<double>(ranks * threads));
  const double part = std::min(1.0, static_cast<double>(threads) / cores);
  // One core draws more than its part of the memory's rate when the others rest: measured 26.5 of 45.3 GB/s.
  constexpr double kOneCore = 0.585;
  const double memory = std::min(1.0, kOneCore * busy) / static_cast<double>(std::max<std::int64_t>(1, ranks));
  for (double* rate : {&share.matrix_rate, &share.mma_rate, &share.vector_rate}) *rate *= part;
  for (double* rate : {&share.memory_rate, &share.l2_rate, &share.shared_rate}) *rate *= memory;
  share.memory_bytes /= static_cast<double>(std::max<std::int64_t>(1, ranks));
  return share;
}

double exchange_seconds(const Hardware& hardware, double calls, double bytes, std::int64_t ranks, std::int64_t stride) {
  if (ranks <= 1) return 0.0;
  const std::int64_t in_node = std::clamp<std::int64_t>(hardware.ranks_per_node / stride, 1, ranks);
  const std::int64_t nodes = ceil_div(ranks, in_node);
  const double inside = kLinkShare * hardware.node_rate;
  const double outside = kLinkShare * hardware.net_rate * static_cast<double>(in_node);
  const double rate = nodes == 1 ? inside : std::min(inside, outside);
  const double latency = hardware.node_latency * (1.0 + std::log2(static_cast<double>(in_node))) +
                         hardware.net_latency * std::log2(static_cast<double>(nodes));
  return bytes / rate + calls * latency;
}

}  // namespace reprise
