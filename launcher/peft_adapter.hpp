#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "core/parameter.hpp"
#include "launcher/run_config.hpp"
#include "layers/lora.hpp"
#include "parallel/process_groups.hpp"

namespace reprise {

// Adapter folders as `peft` writes and loads them: adapter_config.json and adapter_model.safetensors, whose tensors
// are named "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight". Everything that is wrong with one throws
// Error(kUsage) naming file, key (or tensor) and value.

/// The adapters that a model is loaded with.
struct AdapterOptions {
  LoraOptions lora = {};              ///< rank 0 = none
  std::filesystem::path folder = {};  ///< where their values are read from; empty = new ones
  std::uint64_t seed = 1;             ///< of new ones
};

/// Rank, alpha and kind of scale as adapter_config.json has them, targets as the tensors name them. Refuses by name
/// what these adapters do not compute: other methods than LoRA, DoRA, biases, modules_to_save, ranks that differ, an
/// initialisation that changed the base, ...
[[nodiscard]] LoraOptions read_peft_options(const std::filesystem::path& folder);

/// The adapters in `folder`; none for an empty path.
[[nodiscard]] AdapterOptions adapter_in(const std::filesystem::path& folder);
/// The adapters that a run trains: those of lora.adapter, else new ones of lora.rank.
[[nodiscard]] AdapterOptions trained_adapter(const RunConfig& config);
/// The run with [lora] as lora.adapter says it, so that the folder is not needed to know it. Throws Error(kUsage) where
/// lora.rank says something else.
[[nodiscard]] RunConfig with_adapter_settings(RunConfig config);

/// Reads this rank's blocks of every adapter. The folder must hold these tensors, of these shapes, and no others. No
/// communication.
template <class T>
void load_peft_adapter(const std::filesystem::path& folder, ParameterSet<T>& adapters);

struct PeftExport {
  LoraOptions lora;
  std::filesystem::path base;     ///< model folder: base_model_name_or_path
  std::string dtype = "float32";  ///< of the tensors: float32, bfloat16 or float16
};
/// Writes `output` (which must not exist, or be empty) as an adapter folder. Built in `<output>.part` and renamed.
/// Collective over tp of dp rank 0, one all-gather a tensor; other dp ranks return at once. `adapters` on a CPU.
void export_peft_adapter(const ProcessGroups& groups, ParameterSet<float>& adapters, const PeftExport& what,
                         const std::filesystem::path& output);

/// The fingerprint of a model with an adapter: of both; `model` itself for an empty path. See cached_sha256_tree for
/// `world` and `cache`.
[[nodiscard]] std::string adapted_fingerprint(const std::string& model, const std::filesystem::path& adapter,
                                              Communicator* world = nullptr, const std::filesystem::path& cache = {});

}  // namespace reprise
