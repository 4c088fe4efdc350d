#include "launcher/memory_estimate.hpp"

#include <gtest/gtest.h>

#include <chrono>

#include "tests/support/program_fixture.hpp"

// What is foreseen of a run's memory beside what the program holds: arena and resident memory, from memory.json.

namespace reprise {
namespace {

/// A run of the program in its own process (or two).
struct MemoryCase {
  const char* name;
  std::vector<std::string> settings;
  int ranks = 1;
};

DecoderConfig model_of(std::int64_t vocab_size, std::int64_t hidden, std::int64_t layers) {
  DecoderConfig model = tiny_decoder_config();
  model.vocab_size = vocab_size;
  model.hidden_size = hidden;
  model.ffn_hidden_size = 3 * hidden;
  model.num_layers = layers;
  model.num_heads = 4;
  model.num_kv_heads = 2;
  model.head_dim = hidden / 4;
  model.max_position_embeddings = 1024;
  return model;
}

struct MemoryProgram : ProgramFixture {
  explicit MemoryProgram(const DecoderConfig& decoder)
      : ProgramFixture({.count = 8, .shortest = 256, .longest = 257, .vocab_size = decoder.vocab_size}) {
    model = decoder;
    make_model_folder(config.model.path, model);
    config.data.sequence_length = 256;
    config.train.steps = 1;
    config.train.global_batch = 4;
    config.train.micro_batch = 2;
    config.replay.k_max = 48;
  }

  /// Foreseen over measured, of arena and of the process.
  void expect_foreseen(const MemoryCase& one) {
    std::vector<std::string> settings = one.settings;
    settings.push_back("run.folder=" + (folder / one.name).string());
    const ProgramResult result = train(one.ranks, "", settings);
    ASSERT_EQ(result.exit_code, 0) << one.name << ": " << result.printed;
    const auto json = nlohmann::json::parse(read_text_file(folder / one.name / "memory.json", ErrorKind::kData));
    const auto ratio = [&](const char* foreseen, const char* measured) {
      return json["foreseen"][foreseen].get<double>() / json["peak"][measured].get<double>();
    };
    EXPECT_NEAR(ratio("arena", "arena"), 1.0, 0.1) << one.name;
    EXPECT_NEAR(ratio("total", "process"), 1.0, 0.1) << one.name << json.dump(2);
    for (const char* buffer : {"weights", "gradients", "optimizer"}) EXPECT_EQ(ratio(buffer, buffer), 1.0) << buffer;
  }
};

TEST(MemoryEstimate, IsWithinTenPercentOfWhatTheProgramHolds) {
  MemoryProgram program(model_of(8192, 96, 4));
  program.config.replay.store = program.folder / "store";
  ASSERT_EQ(program.collect().exit_code, 0);
  program.config.replay.store = "";
  const std::string store = "replay.store=" + (program.folder / "store").string();
  for (const MemoryCase& one : std::vector<MemoryCase>{
           {"full", {}},
           {"selective", {"train.recompute=selective"}},
           {"layer", {"train.recompute=layer"}},
           {"bf16", {"model.dtype=bfloat16"}},
           {"packed", {"data.pack=true", "data.sequence_length=600"}},
           {"token", {store, "replay.normalization=token"}},
           {"tile", {store, "replay.normalization=tile", "train.recompute=selective"}},
           {"lora", {"lora.rank=8"}},
           {"zero0", {"optimizer.zero_stage=0"}, 2},
           {"zero1", {"optimizer.zero_stage=1", "train.recompute=layer"}, 2},
           {"zero2", {"optimizer.zero_stage=2"}, 2},
           {"tensor", {store, "replay.normalization=tile", "parallel.tensor=2"}, 2},
           {"sequence", {"parallel.tensor=2", "parallel.sequence_parallel=true", "train.recompute=selective"}, 2},
       }) {
    program.expect_foreseen(one);
  }
}

TEST(MemoryEstimate, HoldsWhereActivationsOrTheVocabularyDominate) {
  MemoryProgram deep(model_of(32000, 192, 6));  // 15 M parameters
  deep.expect_foreseen({"deep", {"train.micro_batch=4", "train.steps=1"}});
  MemoryProgram wide(model_of(151936, 64, 2));  // 20 M parameters
  wide.expect_foreseen({"wide", {"train.steps=1", "train.recompute=selective"}});
}

DecoderConfig llama(std::int64_t vocab, std::int64_t hidden, std::int64_t ffn, std::int64_t layers,
                    std::int64_t heads) {
  DecoderConfig model;
  model.vocab_size = vocab;
  model.hidden_size = hidden;
  model.ffn_hidden_size = ffn;
  model.num_layers = layers;
  model.num_heads = heads;
  model.num_kv_heads = 8;
  model.head_dim = 128;
  model.max_position_embeddings = 8192;
  return model;
}

TEST(MemoryEstimate, LargeModelsOnManyRanksTakeNoTime) {
  const auto start = std::chrono::steady_clock::now();
  for (const std::int64_t world : {8, 1024, 16384}) {
    for (const DecoderConfig& model : {llama(128256, 4096, 14336, 32, 32), llama(128256, 8192, 28672, 80, 64),
                                       llama(128256, 16384, 53248, 126, 128)}) {
      RunConfig config;
      config.model.dtype = "bfloat16";
      config.parallel.tensor = 8;
      config.parallel.sequence_parallel = true;
      std::int64_t before = std::numeric_limits<std::int64_t>::max();
      for (const char* recompute : {"none", "selective", "layer"}) {
        config.train.recompute = recompute;
        const RunShape run(model, config, world);
        const StepShape step{.tokens = 8192, .targets = 4096, .max_tokens = 8192, .max_targets = 4096};
        const MemoryEstimate memory = estimate_memory(run, step, {}, {.gpu = true});
        EXPECT_LT(memory.arena(), before) << recompute;
        before = memory.arena();
        EXPECT_NEAR(static_cast<double>(memory.weights), 2.0 * static_cast<double>(run.parameters) / 8.0,
                    0.05 * static_cast<double>(run.parameters));
      }
    }
  }
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 5.0);  // 27 estimates
}

}  // namespace
}  // namespace reprise
