#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace reprise {

/// What a rank computes on and how ranks reach each other, for estimates of time. Rates are a second, of one GPU, or
/// of a whole CPU machine. docs/scaling.md has the source of every number.
struct Hardware {
  std::string name;   ///< as --hardware takes it
  std::string title;  ///< with what kind of node it stands in
  bool gpu = true;
  std::int64_t ranks_per_node = 8;

  double memory_bytes = 0.0;    ///< of the data sheet
  double memory_rate = 0.0;     ///< bytes
  double memory_share = 0.85;   ///< of it that streaming kernels reach
  double l2_rate = 0.0;         ///< bytes from L2 to all multiprocessors
  double shared_rate = 0.0;     ///< bytes of all shared memories
  double matrix_rate = 0.0;     ///< FLOP of dense products, bfloat16; float32 on a CPU
  double matrix_share = 0.0;    ///< of it that large products reach in long runs at the card's power limit
  double mma_rate = 0.0;        ///< FLOP by mma.sync, what our own kernels use
  double vector_rate = 0.0;     ///< FLOP of float32
  std::int64_t processors = 0;  ///< multiprocessors over which a product's tiles are spread; 0 = not quantised

  double node_rate = 0.0;  ///< bytes a rank sends to the others of its node, one way
  double node_latency = 0.0;
  double net_rate = 0.0;  ///< bytes a rank's network card sends, one way
  double net_latency = 0.0;
  double watts = 0.0;  ///< of the card at full load, without its host; 0 = not known

  std::string evidence;    ///< what `matrix_share` rests on
  bool validated = false;  ///< the times predicted with it were compared with measured ones
};

/// h100, h200, b200, a100, h100-500w, h100-pcie, cpu.
[[nodiscard]] const std::vector<Hardware>& hardware_table();
/// By name. Throws Error(kUsage) that lists the names.
[[nodiscard]] const Hardware& find_hardware(std::string_view name);

/// The part of a CPU machine that one of `ranks` ranks with `threads` threads has; a GPU comes back as it is.
[[nodiscard]] Hardware rank_share(const Hardware& machine, std::int64_t ranks, std::int64_t threads);

/// Seconds of `calls` collectives in which a rank sends `bytes` in all. The group has `ranks` ranks, `stride` apart in
/// the order of ranks, node by node. Inside a node the node's links limit; across nodes the network cards of the
/// group's ranks in a node together, since rings run over all of them. Latency of a call grows with log2 of both.
[[nodiscard]] double exchange_seconds(const Hardware& hardware, double calls, double bytes, std::int64_t ranks,
                                      std::int64_t stride);

}  // namespace reprise
