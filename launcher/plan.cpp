#include "launcher/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/error.hpp"
#include "core/math.hpp"
#include "launcher/data_loader.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/joined_dataset.hpp"
#include "launcher/progress.hpp"
#include "launcher/run_layout.hpp"

namespace reprise {

namespace {

/// Ids of a set before a store tells: the median at the published setting.
constexpr std::int64_t kTypicalSet = 100;

bool exists(const std::vector<std::string>& prefixes) {
  return !prefixes.empty() && std::all_of(prefixes.begin(), prefixes.end(), [](const std::string& prefix) {
    return std::filesystem::exists(prefix + ".idx");
  });
}

PlannedData plan_data(const RunConfig& config, const DecoderConfig& model, const PlanOptions& options) {
  PlannedData data;
  const auto length = static_cast<double>(config.data.sequence_length);
  data.sample_tokens = length;
  data.longest = config.data.sequence_length;
  data.pairs_a_token = 0.5 * length;
  if (exists(config.data.train)) {
    const JoinedDataset dataset(config.data.train, model.vocab_size);
    const DataStatistics statistics = count_data(dataset, config.data.sequence_length);
    data.read = true;
    data.samples = statistics.samples;
    data.tokens = statistics.tokens;
    data.longest = std::min(statistics.longest - 1, config.data.sequence_length);
    data.sample_tokens = static_cast<double>(statistics.tokens) / static_cast<double>(statistics.samples);
    data.targets_share = static_cast<double>(statistics.targets) / static_cast<double>(statistics.tokens);
    double pairs = 0.0;
    for (std::int64_t d = 0; d < dataset.size(); ++d) {
      const auto tokens = static_cast<double>(std::min(dataset.length(d) - 1, config.data.sequence_length));
      pairs += 0.5 * tokens * tokens;
    }
    data.pairs_a_token = pairs / static_cast<double>(statistics.tokens);
  }
  if (options.tokens_per_step > 0) {
    data.sample_tokens = static_cast<double>(options.tokens_per_step) / static_cast<double>(config.train.global_batch);
    require(data.sample_tokens <= length, ErrorKind::kUsage,
            "--tokens-per-step {}: {} samples (train.global_batch) of data.sequence_length = {} hold at most {}",
            options.tokens_per_step, config.train.global_batch, config.data.sequence_length,
            config.train.global_batch * config.data.sequence_length);
    data.pairs_a_token = 0.5 * data.sample_tokens;
  }
  if (options.targets_share > 0.0) data.targets_share = options.targets_share;
  if (options.data_tokens > 0) {
    data.tokens = options.data_tokens;
    data.samples = static_cast<std::int64_t>(
        std::ceil(static_cast<double>(options.data_tokens) / std::max(1.0, data.sample_tokens)));
  }
  return data;
}

double targets_of_sample(const RunConfig& config, const PlannedData& data) {
  const double targets = data.targets_share * data.sample_tokens;
  const bool limited = config.replay.budget > 0 && !config.replay.store.empty();
  return limited ? std::min(targets, static_cast<double>(config.replay.budget)) : targets;
}

StepShape plan_step(const RunConfig& config, const PlannedData& data, std::int64_t ranks) {
  const std::int64_t samples = config.train.global_batch / ranks, length = config.data.sequence_length;
  const double tokens = static_cast<double>(samples) * data.sample_tokens;
  const auto rows =
      config.data.pack ? static_cast<std::int64_t>(std::ceil(tokens / static_cast<double>(length) - 1e-9)) : samples;
  const std::int64_t micro_batches = ceil_div(std::max<std::int64_t>(1, rows), config.train.micro_batch);
  StepShape step;
  step.micro_batches = static_cast<double>(micro_batches);
  step.tokens = tokens / step.micro_batches;
  step.targets = static_cast<double>(samples) * targets_of_sample(config, data) / step.micro_batches;
  const std::int64_t full_rows = std::min(config.train.micro_batch, std::max<std::int64_t>(1, rows));
  step.longest = data.longest;
  step.max_tokens = full_rows * (config.data.pack ? length : data.longest);
  const double share = step.tokens > 0.0 ? step.targets / step.tokens : 0.0;
  step.max_targets = static_cast<std::int64_t>(std::ceil(share * static_cast<double>(step.max_tokens)));
  return step;
}

double set_size(const RunConfig& config) {
  if (config.replay.tau >= 1.0) return static_cast<double>(config.replay.k_max);
  return static_cast<double>(std::clamp(kTypicalSet, config.replay.k_min, config.replay.k_max));
}

double pairs_of(const StepShape& step, const PlannedData& data) {
  return step.tokens * data.pairs_a_token;
}

Hardware share_of(const PlanOptions& options) {
  const Hardware& machine = find_hardware(options.hardware);
  const std::int64_t local = std::min(options.world_size, machine.ranks_per_node);
  return rank_share(machine, local, std::max<std::int64_t>(1, machine.ranks_per_node / local));
}

RankDevice device_of(const Hardware& hardware) {
  return {.gpu = hardware.gpu, .threads = 1};
}

bool fits_into(const Hardware& hardware, const MemoryEstimate& memory) {
  const std::int64_t bytes = hardware.gpu ? memory.device() : memory.total();
  return static_cast<double>(bytes) <= usable_bytes(hardware);
}

/// The store with the sizes of its tiles, which a restricted head's memory depends on.
StoreShape with_tiles(StoreShape store, const DecoderConfig& model, const PlannedHead& head) {
  if (head.kind == TimedHead::Kind::kFull) return {};
  const auto tile = static_cast<double>(head.kind == TimedHead::Kind::kTile ? head.tile_tokens : 1);
  store.logits_a_target = union_size({.vocab = static_cast<double>(model.vocab_size), .set_size = head.set_size}, tile);
  store.candidates_a_target = store.logits_a_target / tile;
  return store;
}

HeadPlan plan_head(const Plan& plan, RunConfig config, const std::string& normalization) {
  config.replay.normalization = normalization;
  const RunShape run(plan.model, config, plan.world_size);
  const PlannedHead head = planned_head(config, plan.set_size);
  const double pairs = pairs_of(plan.step, plan.dataset);
  return {normalization, estimate_step_time(plan.hardware, make_timed_step(run, plan.step, pairs, plan.hardware, head)),
          estimate_memory(run, plan.step, with_tiles(plan.store, plan.model, head), device_of(plan.hardware))};
}

std::string describe(const SweepRow& row) {
  return fmt::format("tensor {} x data {}, micro-batch {}, recompute \"{}\", ZeRO {}", row.tensor, row.data,
                     row.micro_batch, row.recompute, row.zero_stage);
}

/// What to do when the run's own layout does not fit.
std::string advise(const Plan& plan, const RunConfig& config, const PlanOptions& options) {
  const std::int64_t needed = plan.hardware.gpu ? plan.memory().device() : plan.memory().total();
  const std::string lack = fmt::format("does not fit: {} are needed, {} usable", format_bytes(needed),
                                       format_bytes(static_cast<std::int64_t>(usable_bytes(plan.hardware))));
  const Sweep sweep = sweep_layouts(config, options);
  if (sweep.rows.empty())
    return fmt::format("{}. No layout of {} ranks fits: {}", lack, plan.world_size, misfit(sweep, plan.hardware));
  const SweepRow& best = sweep.rows.front();
  return fmt::format("{}. What fits and is fastest: {}{}", lack, describe(best),
                     best.across_nodes ? "; its copies of the model span several nodes, where collectives are slow: "
                                         "without pipeline parallelism, which reprise has not, it does not fit better"
                                       : "");
}

void add_run(Plan& plan, const RunConfig& config, const TimedStep& timed) {
  const bool epochs = config.train.epochs > 0.0;
  if (epochs && plan.dataset.samples > 0) plan.steps = total_steps(config, plan.dataset.samples);
  if (!epochs) plan.steps = config.train.steps;
  plan.train_seconds = static_cast<double>(plan.steps) * plan.time().total();
  if (plan.steps == 0)
    plan.notes.push_back("train.epochs needs the data's size: give --data-tokens for whole-run figures");
  if (config.replay.store.empty()) return;
  double tokens = static_cast<double>(plan.dataset.tokens);
  if (plan.dataset.tokens == 0) {
    tokens = static_cast<double>(plan.steps) * plan.tokens_per_step();
    if (plan.steps > 0) {
      plan.notes.push_back(
          "the data's size is not known: Stage 0 is reckoned as if no token came twice (--data-tokens)");
    }
  }
  const double share = tokens / static_cast<double>(plan.data);
  const double targets = plan.step.tokens > 0.0 ? share * plan.step.targets / plan.step.tokens : 0.0;
  plan.collect_seconds = collect_seconds(plan.hardware, timed, share, targets);
}

void add_notes(Plan& plan, const RunConfig& config) {
  const Hardware& hardware = plan.hardware;
  if (!hardware.validated) {
    plan.notes.push_back(
        fmt::format("times on {} were never compared with a measured run: {}", hardware.name, hardware.evidence));
  }
  if (hardware.gpu) {
    plan.notes.push_back(
        "this program was never timed on a GPU: dense training was compared with published runs of other programs "
        "(docs/scaling.md); the restricted head, its attention kernels and the overlap of its collectives are "
        "predictions");
    if (plan.tensor > hardware.ranks_per_node) {
      plan.notes.push_back(
          fmt::format("parallel.tensor = {} spans nodes of {} ranks: its collectives cross the network", plan.tensor,
                      hardware.ranks_per_node));
    }
  }
  if (!plan.dataset.read && plan.dataset.tokens == 0 && config.normalization() != Normalization::kFull &&
      !config.replay.store.empty()) {
    plan.notes.push_back("the store's bytes of host memory are left out: the data's size is not known");
  }
}

}  // namespace

double Plan::tokens_per_step() const {
  return step.micro_batches * step.tokens * static_cast<double>(data);
}

double Plan::utilisation() const {
  return time().model_flops / (time().total() * hardware.matrix_rate);
}

double usable_bytes(const Hardware& hardware) {
  constexpr double kReserved = 3e9;  // context, libraries, holes between buffers
  return hardware.gpu ? hardware.memory_bytes - kReserved : hardware.memory_bytes;
}

std::string misfit(const Sweep& sweep, const Hardware& hardware) {
  if (static_cast<double>(sweep.state_bytes) > usable_bytes(hardware)) {
    return fmt::format(
        "weights, gradients and optimizer alone are {} a rank when split over all of them, {} are usable; more ranks "
        "are "
        "needed",
        format_bytes(sweep.state_bytes), format_bytes(static_cast<std::int64_t>(usable_bytes(hardware))));
  }
  return fmt::format(
      "the least, {}, needs {}. The model does not fit on so many of this hardware without pipeline parallelism, which "
      "reprise has not",
      describe(sweep.least), format_bytes(sweep.least_bytes));
}

Plan make_plan(const RunConfig& config, const PlanOptions& options) {
  Plan plan;
  plan.model = read_decoder_config(config.model.path, config.model.vocab_size);
  check_layout(plan.model, config, options.world_size);
  plan.world_size = options.world_size;
  plan.tensor = config.parallel.tensor;
  plan.data = options.world_size / plan.tensor;
  plan.hardware = share_of(options);
  plan.dataset = plan_data(config, plan.model, options);
  plan.step = plan_step(config, plan.dataset, plan.data);
  plan.set_size = set_size(config);
  if (!config.replay.store.empty() && plan.dataset.samples > 0) {
    plan.store.positions =
        static_cast<std::int64_t>(static_cast<double>(plan.dataset.samples) * targets_of_sample(config, plan.dataset));
    plan.store.ids = static_cast<std::int64_t>(plan.set_size * static_cast<double>(plan.store.positions));
    plan.store_bytes = store_disk_bytes(plan.store, config.replay.log_probs);
  }
  const RunShape run(plan.model, config, plan.world_size);
  plan.parameters = run.parameters;
  plan.wire = estimate_wire(run, plan.step);
  plan.heads.push_back(plan_head(plan, config, config.replay.normalization));
  for (const char* other : {"full", "token", "tile"}) {
    if (other != config.replay.normalization) plan.heads.push_back(plan_head(plan, config, other));
  }
  plan.fits = fits_into(plan.hardware, plan.memory());
  plan.fit = plan.fits ? "fits" : advise(plan, config, options);
  add_run(plan, config,
          make_timed_step(run, plan.step, pairs_of(plan.step, plan.dataset), plan.hardware,
                          planned_head(config, plan.set_size)));
  add_notes(plan, config);
  return plan;
}

Sweep sweep_layouts(const RunConfig& base, const PlanOptions& options) {
  const DecoderConfig model = read_decoder_config(base.model.path, base.model.vocab_size);
  const PlannedData data = plan_data(base, model, options);
  const Hardware hardware = share_of(options);
  Sweep sweep;
  const std::vector<std::int64_t> legal = legal_tensor_sizes(model, base.train.global_batch, options.world_size);
  require(!legal.empty(), ErrorKind::kUsage,
          "{} ranks: no parallel.tensor divides them and the model and leaves data ranks that divide "
          "train.global_batch = {}; change the number of ranks or train.global_batch",
          options.world_size, base.train.global_batch);
  for (const std::int64_t tensor : legal) {
    RunConfig config = base;
    config.parallel.tensor = tensor;
    config.parallel.sequence_parallel = tensor > 1;
    RunShape run(model, config, options.world_size);
    const std::int64_t a_trained = 4 + (run.element_bytes == 2 ? 12 : 8);
    sweep.state_bytes = (run.element_bytes * run.parameters + a_trained * run.trained) / options.world_size;
    const std::int64_t samples = config.train.global_batch / run.data;
    for (std::int64_t micro_batch = 1; micro_batch <= std::min<std::int64_t>(64, samples); micro_batch *= 2) {
      for (const char* recompute : {"none", "selective", "layer"}) {
        for (std::int64_t stage = 1; stage <= (run.data > 1 ? 2 : 1); ++stage) {
          run.config.train.micro_batch = micro_batch;
          run.config.train.recompute = recompute;
          run.config.optimizer.zero_stage = stage;
          const StepShape step = plan_step(run.config, data, run.data);
          const PlannedHead head = planned_head(run.config, set_size(run.config));
          SweepRow row{.tensor = tensor,
                       .data = run.data,
                       .micro_batch = micro_batch,
                       .zero_stage = stage,
                       .recompute = recompute,
                       .memory = estimate_memory(run, step, with_tiles({}, model, head), device_of(hardware)),
                       .across_nodes = tensor > hardware.ranks_per_node};
          sweep.tried += 1;
          const std::int64_t bytes = row.memory.device();
          if (sweep.least_bytes == 0 || bytes < sweep.least_bytes) {
            sweep.least_bytes = bytes;
            sweep.least = row;
          }
          if (!fits_into(hardware, row.memory)) continue;
          row.step_seconds =
              estimate_step_time(hardware, make_timed_step(run, step, pairs_of(step, data), hardware, head)).total();
          row.tokens_per_second_per_rank =
              step.micro_batches * step.tokens / static_cast<double>(tensor) / row.step_seconds;
          sweep.rows.push_back(std::move(row));
        }
      }
    }
  }
  sweep.fitting = static_cast<std::int64_t>(sweep.rows.size());
  std::stable_sort(sweep.rows.begin(), sweep.rows.end(),
                   [](const SweepRow& a, const SweepRow& b) { return a.step_seconds < b.step_seconds; });
  return sweep;
}

}  // namespace reprise
