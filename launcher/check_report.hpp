#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "launcher/data_loader.hpp"
#include "launcher/memory_estimate.hpp"
#include "launcher/run_config.hpp"
#include "launcher/wire_estimate.hpp"
#include "layers/decoder_config.hpp"

namespace reprise {

/// One data set as a run would read it.
struct DataReport {
  std::string prefix, role;  ///< "train", "general" or "eval"
  DataStatistics statistics;
  double share = 0.0;   ///< of all training samples
  double epochs = 0.0;  ///< how often the run sees each of its samples
  std::int64_t largest_id = -1;
  bool has_mask = false, has_weight = false;
};

/// A folder that a run writes into.
struct DiskReport {
  std::string key;
  std::filesystem::path path;
  std::string file_system;
  std::int64_t needed = 0, free = 0;
};

/// Everything that `check` says.
struct CheckReport {
  DecoderConfig model;
  std::string weight_dtype;
  std::int64_t weight_bytes = 0;
  std::int64_t parameters = 0;
  std::int64_t largest_token_id = -1;  ///< of the tokenizer; -1 = no tokenizer.json
  std::vector<DataReport> data;

  std::int64_t world_size = 1, tensor_size = 1, data_size = 1;
  std::int64_t steps = 0;
  double epochs = 0.0;
  StepShape step;  ///< mean over some steps of the run

  bool store_exists = false;
  StoreShape store;                      ///< of the store, else an estimate
  std::int64_t store_bytes = 0;          ///< likewise
  std::int64_t store_largest_bytes = 0;  ///< when every set holds k_max ids

  MemoryEstimate memory;
  std::vector<WireEstimate> wire;
  std::vector<DiskReport> disk;
  std::vector<std::string> notes, warnings;
};

/// Reads and validates all that a run of `world_size` ranks would; computes nothing with the model. Throws what the run
/// would throw: kUsage for model, layout and settings, kData for data, kStoreMismatch for a foreign store.
[[nodiscard]] CheckReport make_check_report(const RunConfig& config, std::int64_t world_size);

}  // namespace reprise
