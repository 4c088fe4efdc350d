#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "launcher/run_config.hpp"
#include "launcher/session.hpp"

namespace reprise {

// The commands of the program. Those with a Session are collective over its world and print on rank 0 only; all throw
// Error with the kind that becomes the exit code.

/// Stage 0: reads the training data once with the base model and writes the replay store; goes on where a killed
/// collection stopped. Prints the report of the collection. Does nothing when the finished store is of the same
/// provenance; another provenance is kStoreMismatch unless `fresh`, which removes the old store first.
void collect_command(Session& session, const RunConfig& config, bool fresh);

struct TrainFlags {
  bool fresh = false;            ///< removes metrics and checkpoints of an earlier run in the folder
  std::int64_t stop_after = -1;  ///< > 0: end with kPreempted after this many steps of this process (for schedulers)
};
/// Stage 1: trains from the model folder, or goes on from the newest verified checkpoint of the run folder.
void train_command(Session& session, const RunConfig& config, const TrainFlags& flags);

struct EvalOptions {
  std::filesystem::path model;
  std::filesystem::path adapter;  ///< PEFT folder, or empty
  std::int64_t vocab_size = 0;    ///< see read_decoder_config
  std::string dtype = "float32";
  std::vector<std::string> data;     ///< prefixes
  std::filesystem::path choices;     ///< or a file of multiple-choice items
  std::int64_t sequence_length = 0;  ///< 0 = the model's max_position_embeddings
  std::int64_t micro_batch = 8;
  std::filesystem::path store;       ///< whose sets the mass outside is measured of; its prefixes in their order
  std::filesystem::path per_token;   ///< .npy, float32 log-probabilities of every target token in data order; or empty
  std::filesystem::path per_sample;  ///< JSON lines, one per sample or item; or empty
  bool json = false;
};
void eval_command(Session& session, const EvalOptions& options);

struct GenerateOptions {
  std::filesystem::path model;
  std::filesystem::path adapter;  ///< PEFT folder, or empty
  std::int64_t vocab_size = 0;    ///< see read_decoder_config
  std::string dtype = "float32";
  std::string data;                  ///< prefix: every document's tokens before its first trained token are a prompt
  std::filesystem::path prompts;     ///< or JSON lines {"tokens": [ids]}
  std::vector<std::int64_t> prompt;  ///< or one prompt, as ids
  std::int64_t max_tokens = 128;
  std::int64_t batch = 32;
  std::int64_t num_samples = 1;  ///< continuations of each prompt
  double temperature = 0.0;      ///< 0 = greedy; see SamplingRule
  std::int64_t top_k = 0;
  double top_p = 1.0;
  std::int64_t seed = 1;
  std::vector<std::int64_t> stop_ids;  ///< beside the end tokens of the model folder
  bool ignore_eos = false;             ///< of the model folder
  bool log_probs = false;
  std::filesystem::path output;  ///< JSONL {"sample": id, "tokens": [...]}, without the end token; empty = stdout
};
void generate_command(Session& session, const GenerateOptions& options);

struct ExportCommandOptions {
  std::filesystem::path run;     ///< run folder
  std::filesystem::path output;  ///< Hugging Face folder to be made
  std::string dtype = "source";  ///< every tensor as in the source folder (adapters: float32), or one dtype for all
  std::int64_t step = -1;        ///< of the checkpoint; -1 = newest verified
  bool best = false;
  bool merge = false;                  ///< of a run with [lora]: the merged model, else its adapters alone
  std::string max_shard_size = "5GB";  ///< bytes, or a number with K, M, G (powers of 1000) or Ki, Mi, Gi
};
void export_command(Session& session, const ExportCommandOptions& options);

/// Environment, libraries, cores, memory, MPI, paths of the run file when one is given. Returns the problems' number.
/// Under mpirun or srun collective over `world`, with one line a rank; null when the program was started alone.
[[nodiscard]] int doctor_command(const std::filesystem::path& run_file, Communicator* world);
/// Writes a commented run file with the overrides in it; refuses to overwrite.
void init_command(const std::filesystem::path& run_file, const std::vector<std::string>& overrides);
/// Validates run file, model folder, data and store without ranks: samples, truncated share, largest id against V,
/// steps and effective batch, memory per rank by category, store size, bytes of the collectives of a step, notes, free
/// disk.
void check_command(const RunConfig& config, std::int64_t world_size, bool json);
struct PlanOptions;
/// What a run of any number of ranks would need and cost on some hardware, from config.json and the run file alone:
/// memory, collectives, time of a step and of the whole run, full cross-entropy beside the restricted head. `sweep`:
/// the layouts that fit, fastest first.
void plan_command(const RunConfig& config, const PlanOptions& options, bool sweep, bool json);
/// Predicts every step of a file of measured ones and prints the error of each.
void plan_against_command(const std::filesystem::path& measured);

void store_info_command(const std::filesystem::path& folder, bool json);
void store_verify_command(const std::filesystem::path& folder);
/// One sample's records, readable.
void store_show_command(const std::filesystem::path& folder, std::uint64_t sample, std::int64_t limit);
void checkpoint_list_command(const std::filesystem::path& run, bool json);
void checkpoint_verify_command(const std::filesystem::path& run_or_checkpoint);

}  // namespace reprise
