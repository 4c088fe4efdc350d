#include "launcher/peft_adapter.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <mutex>

#include "core/transfer.hpp"
#include "launcher/model_session.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {
namespace {

using nlohmann::json;

LoraOptions odd_lora() {
  return {.rank = 3, .alpha = 7.5, .rslora = true, .targets = {"k_proj", "o_proj", "up_proj", "down_proj"}};
}

/// An adapter folder with values that are not zero, written by so many ranks.
void write_adapter(const RunFixture& fixture, const std::filesystem::path& output, int tensor = 1,
                   const std::string& dtype = "float32") {
  run_ranks(tensor, [&](Communicator& world) {
    Session session(world, tensor, false, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, true, 0, {.lora = odd_lora()});
    for (std::int64_t i = 0; i < model->adapters.count(); ++i) {
      const ParameterSpec& spec = model->adapters.spec(i);
      const MatrixView<float> block = model->adapters.value(i);
      for (std::int64_t r = 0; r < block.rows; ++r) {
        for (std::int64_t c = 0; c < block.cols; ++c) {
          block(r, c) = static_cast<float>(i + 1) + 0.001f * static_cast<float>(spec.row_begin + r) -
                        0.01f * static_cast<float>(spec.col_begin + c);
        }
      }
    }
    export_peft_adapter(session.groups(), model->adapters, {odd_lora(), fixture.config.model.path, dtype}, output);
  });
}

std::string bytes_of(const std::filesystem::path& path) {
  return read_text_file(path, ErrorKind::kUsage);
}

void change_config(const std::filesystem::path& adapter, const std::function<void(json&)>& change) {
  json config = json::parse(bytes_of(adapter / "adapter_config.json"));
  change(config);
  std::ofstream(adapter / "adapter_config.json") << config.dump();
}

TEST(PeftAdapter, EveryShardingWritesAndReadsTheSameFolder) {
  const RunFixture fixture;
  const std::filesystem::path one = fixture.folder / "one";
  write_adapter(fixture, one);
  const LoraOptions options = read_peft_options(one);
  EXPECT_EQ(options.rank, 3);
  EXPECT_EQ(options.alpha, 7.5);
  EXPECT_TRUE(options.rslora);
  EXPECT_EQ(options.targets, odd_lora().targets);
  const SafetensorsReader file(one / "adapter_model.safetensors");
  EXPECT_EQ(file.entries().size(), 2u * 4u * 2u);
  EXPECT_EQ(file.at("base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight").shape,
            (std::vector<std::int64_t>{16, 3}));
  for (const int tensor : {2, 4}) {
    const std::filesystem::path other = fixture.folder / fmt::format("tensor{}", tensor);
    write_adapter(fixture, other, tensor);
    for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
      EXPECT_EQ(bytes_of(other / name), bytes_of(one / name)) << name;
    }
    run_ranks(tensor, [&](Communicator& world) {
      Session session(world, tensor, false, 1);
      const auto model = load_model<float>(session, fixture.config.model.path, true, 0, adapter_in(one));
      const std::filesystem::path again = fixture.folder / fmt::format("again{}", tensor);
      export_peft_adapter(session.groups(), model->adapters, {model->lora, fixture.config.model.path}, again);
      world.barrier();
      EXPECT_EQ(bytes_of(again / "adapter_model.safetensors"), bytes_of(one / "adapter_model.safetensors"));
    });
  }
}

TEST(PeftAdapter, WritesOtherStorageTypesRoundedOnce) {
  const RunFixture fixture;
  write_adapter(fixture, fixture.folder / "half", 2, "bfloat16");
  const SafetensorsReader file(fixture.folder / "half" / "adapter_model.safetensors");
  for (const SafetensorsEntry& entry : file.entries()) EXPECT_EQ(entry.dtype, "BF16") << entry.name;
}

TEST(PeftAdapter, RefusesByNameWhatItDoesNotCompute) {
  const RunFixture fixture;
  const std::filesystem::path folder = fixture.folder / "adapter";
  write_adapter(fixture, folder);
  const std::string sound = bytes_of(folder / "adapter_config.json");
  const auto refused = [&](const std::vector<std::string>& parts, const std::function<void(json&)>& change) {
    change_config(folder, change);
    expect_error(ErrorKind::kUsage, parts, [&] { (void)read_peft_options(folder); });
    std::ofstream(folder / "adapter_config.json") << sound;
  };
  refused({"use_dora = true"}, [](json& c) { c["use_dora"] = true; });
  refused({"bias = \"lora_only\"", "none"}, [](json& c) { c["bias"] = "lora_only"; });
  refused({"lora_bias = true"}, [](json& c) { c["lora_bias"] = true; });
  refused({"modules_to_save", "lm_head"}, [](json& c) { c["modules_to_save"] = {"lm_head"}; });
  refused({"rank_pattern", "q_proj"}, [](json& c) { c["rank_pattern"] = {{"q_proj", 4}}; });
  refused({"alpha_pattern", "q_proj"}, [](json& c) { c["alpha_pattern"] = {{"q_proj", 4}}; });
  refused({"layer_replication"}, [](json& c) { c["layer_replication"] = {{0, 1}}; });
  refused({"fan_in_fan_out = true"}, [](json& c) { c["fan_in_fan_out"] = true; });
  refused({"trainable_token_indices"}, [](json& c) { c["trainable_token_indices"] = {1}; });
  refused({"init_lora_weights = \"pissa\"", "base with other weights"},
          [](json& c) { c["init_lora_weights"] = "pissa"; });
  refused({"peft_type = \"IA3\"", "LORA"}, [](json& c) { c["peft_type"] = "IA3"; });
  refused({"task_type = \"SEQ_CLS\""}, [](json& c) { c["task_type"] = "SEQ_CLS"; });
  refused({"some_new_method"}, [](json& c) { c["some_new_method"] = {{"depth", 2}}; });
  refused({"r = 0"}, [](json& c) { c["r"] = 0; });
  refused({"lora_alpha = null"}, [](json& c) { c.erase("lora_alpha"); });
  change_config(folder, [](json& c) {  // what does not change the arithmetic, and settings that are off
    c["init_lora_weights"] = "gaussian";
    c["lora_dropout"] = 0.1;
    c["some_new_method"] = nullptr;
    c["qalora_group_size"] = 16;
  });
  EXPECT_EQ(read_peft_options(folder).rank, 3);
  expect_error(ErrorKind::kUsage, {"nowhere", "adapter_config.json"},
               [&] { (void)read_peft_options(fixture.folder / "nowhere"); });
}

TEST(PeftAdapter, NamesTensorsThatDoNotFit) {
  const RunFixture fixture;
  const std::filesystem::path folder = fixture.folder / "adapter";
  write_adapter(fixture, folder);
  const auto load_with = [&](const std::vector<SafetensorsTensor>& tensors, const std::vector<std::string>& parts) {
    SafetensorsWriter writer(folder / "adapter_model.safetensors", tensors);
    for (const SafetensorsTensor& tensor : tensors) {
      const std::vector<float> zeros(static_cast<std::size_t>(tensor.shape[0] * tensor.shape[1]));
      writer.write<float>(tensor.name, zeros);
    }
    writer.finish();
    expect_error(ErrorKind::kUsage, parts, [&] {
      run_ranks(1, [&](Communicator& world) {
        Session session(world, 1, false, 1);
        (void)load_model<float>(session, fixture.config.model.path, true, 0, adapter_in(folder));
      });
    });
  };
  const std::string first = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
  load_with({{first + "A.weight", "F32", {3, 32}}, {first + "B.weight", "F32", {32, 4}}},
            {first + "B.weight is [32, 4]", "[32, 3]", "missing: base_model.model.model.layers.1.self_attn.q_proj"});
  load_with({{first + "A.weight", "F32", {3, 32}}, {"base_model.model.lm_head.lora_A.weight", "F32", {3, 32}}},
            {"unexpected: base_model.model.lm_head.lora_A.weight"});
  load_with({{"base_model.model.lm_head.lora_A.weight", "F32", {3, 32}}}, {"holds no adapter of q_proj"});
  std::filesystem::remove(folder / "adapter_model.safetensors");
  expect_error(ErrorKind::kUsage, {"adapter_model.safetensors"}, [&] { (void)read_peft_options(folder); });
}

TEST(PeftAdapter, TheRunFileMayNotSayAnotherRank) {
  const RunFixture fixture;
  write_adapter(fixture, fixture.folder / "adapter");
  RunConfig config = fixture.config;
  config.lora.adapter = fixture.folder / "adapter";
  const RunConfig resolved = with_adapter_settings(config);
  EXPECT_EQ(resolved.lora.rank, 3);
  EXPECT_EQ(resolved.lora.alpha, 7.5);
  EXPECT_EQ(resolved.lora_options().targets, odd_lora().targets);
  EXPECT_EQ(with_adapter_settings(resolved).lora.targets, odd_lora().targets);
  config.lora.rank = 8;
  expect_error(ErrorKind::kUsage, {"lora.rank = 8", "rank 3"}, [&] { (void)with_adapter_settings(config); });
}

TEST(PeftAdapter, TheFingerprintIsOfBoth) {
  const RunFixture fixture;
  write_adapter(fixture, fixture.folder / "adapter");
  const std::string base = "model's", before = adapted_fingerprint(base, fixture.folder / "adapter");
  EXPECT_EQ(adapted_fingerprint(base, ""), base);
  EXPECT_NE(before, base);
  EXPECT_NE(adapted_fingerprint("another's", fixture.folder / "adapter"), before);
  change_config(fixture.folder / "adapter", [](json& c) { c["lora_alpha"] = 8; });
  EXPECT_NE(adapted_fingerprint(base, fixture.folder / "adapter"), before);
}

}  // namespace
}  // namespace reprise
