#include "launcher/hugging_face.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "core/strict_json.hpp"
#include "parallel/self_communicator.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/support/device.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/make_model_folder.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

/// Declares a model as tensor-parallel rank `rank` of `size` would hold it: rows or columns cut unevenly, key and
/// value rows on pairs of ranks, vectors whole.
template <class T>
void declare(const DecoderConfig& config, int rank, int size, ParameterSet<T>& parameters) {
  for (const ModelTensor& tensor : model_tensors(config)) {
    ParameterSpec spec;
    spec.name = tensor.name;
    spec.layer = "layer";
    spec.global_rows = tensor.rows;
    spec.global_cols = tensor.cols;
    spec.is_vector = tensor.is_vector;
    Range rows{0, tensor.rows}, cols{0, tensor.cols};
    const auto contains = [&](const char* part) { return tensor.name.find(part) != std::string::npos; };
    if (contains("o_proj.weight") || contains("down_proj.weight")) {
      cols = even_shard(tensor.cols, size, rank);
    } else if (contains("k_proj") || contains("v_proj")) {
      rows = even_shard(tensor.rows, (size + 1) / 2, rank / 2);
    } else if (!contains("norm") && !contains("o_proj.bias")) {
      rows = even_shard(tensor.rows, size, rank);
    }
    spec.row_begin = rows.begin;
    spec.row_end = rows.end;
    spec.col_begin = cols.begin;
    spec.col_end = cols.end;
    parameters.add(spec);
  }
  parameters.allocate(test_stream(), 1 << 20, 1, true);
}

std::string tensor_bytes(const WeightFiles& files, const std::string& name) {
  const SafetensorsEntry& entry = files.entry(name);
  std::string bytes(static_cast<std::size_t>(entry.bytes()), '\0');
  files.file(name).read_bytes(entry, 0, entry.bytes(), bytes.data());
  return bytes;
}

void expect_same_tensors(const std::filesystem::path& got, const std::filesystem::path& want) {
  const WeightFiles a(got), b(want);
  ASSERT_EQ(a.names(), b.names());
  for (const std::string& name : a.names()) {
    EXPECT_EQ(a.entry(name).dtype, b.entry(name).dtype);
    EXPECT_EQ(a.entry(name).shape, b.entry(name).shape);
    EXPECT_EQ(tensor_bytes(a, name), tensor_bytes(b, name)) << name;
  }
}

template <class T>
void load_and_export(Communicator& world, int tensor, const DecoderConfig& config, const std::filesystem::path& source,
                     const std::filesystem::path& output, const ExportOptions& options) {
  const ProcessGroups groups = ProcessGroups::make(world, tensor);
  ParameterSet<T> parameters;
  declare(config, groups.tp_rank(), groups.tp_size(), parameters);
  load_hugging_face(source, config.tie_word_embeddings, parameters);
  export_hugging_face(groups, parameters, source, output, options);
}

DecoderConfig tied_config() {
  DecoderConfig config = tiny_decoder_config();
  config.tie_word_embeddings = true;
  return config;
}

DecoderConfig qwen2_config() {
  DecoderConfig config = tiny_decoder_config();
  config.model_type = "qwen2";
  config.qkv_bias = true;
  return config;
}

TEST(HuggingFace, LoadedBlocksAreThoseOfTheTensors) {
  const TemporaryFolder folder;
  const DecoderConfig config = qwen2_config();
  make_model_folder(folder.path(), config, {.dtype = "BF16", .tensors_per_file = 5});
  const WeightFiles files(folder.path());
  for (const int size : {1, 2, 3, 4}) {
    for (int rank = 0; rank < size; ++rank) {
      ParameterSet<float> parameters;
      declare(config, rank, size, parameters);
      load_hugging_face(folder.path(), false, parameters);
      for (std::int64_t p = 0; p < parameters.count(); ++p) {
        const ParameterSpec& spec = parameters.spec(p);
        std::vector<float> whole(static_cast<std::size_t>(spec.global_size()));
        files.file(spec.name).read<float>(files.entry(spec.name), {whole, spec.global_rows, spec.global_cols});
        const std::vector<float> held = to_host(test_stream(), parameters.value(p).flat());
        const MatrixView<const float> value(held, spec.rows(), spec.cols());
        for (std::int64_t r = 0; r < spec.rows(); ++r) {
          for (std::int64_t c = 0; c < spec.cols(); ++c) {
            const std::int64_t at = (spec.row_begin + r) * spec.global_cols + spec.col_begin + c;
            ASSERT_EQ(value(r, c), whole[static_cast<std::size_t>(at)]) << spec.name;
          }
        }
      }
    }
  }
}

/// Bytes that this thread has read by system calls.
std::int64_t bytes_read_here() {
  std::ifstream file("/proc/thread-self/io");
  std::string key;
  std::int64_t value = 0;
  while (file >> key >> value) {
    if (key == "rchar:") return value;
  }
  throw std::runtime_error("/proc/thread-self/io has no rchar");
}

TEST(HuggingFace, EachRankReadsItsSlicesAndNoMore) {
  const TemporaryFolder folder;
  DecoderConfig config = tiny_decoder_config();
  config.hidden_size = 512;
  config.ffn_hidden_size = 1024;
  config.num_layers = 1;
  config.head_dim = 128;
  make_model_folder(folder.path(), config, {.tensors_per_file = 4});
  std::int64_t headers = 0;
  const WeightFiles files(folder.path());
  for (const SafetensorsReader& file : files.files()) {
    headers += static_cast<std::int64_t>(std::filesystem::file_size(file.path()));
    for (const SafetensorsEntry& entry : file.entries()) headers -= entry.bytes();
  }
  headers += static_cast<std::int64_t>(std::filesystem::file_size(folder / "model.safetensors.index.json"));
  for (const int size : {1, 2, 4}) {
    for (int rank = 0; rank < size; ++rank) {
      ParameterSet<float> parameters;
      declare(config, rank, size, parameters);
      std::int64_t own = headers;
      for (const ParameterSpec& spec : parameters.specs()) own += 4 * spec.size();
      const std::int64_t before = bytes_read_here();
      load_hugging_face(folder.path(), false, parameters);
      const std::int64_t read = bytes_read_here() - before;
      EXPECT_GE(read, own);
      EXPECT_LE(read, own + 4096) << "rank " << rank << " of " << size;  // and what the counter itself reads
    }
  }
}

TEST(HuggingFace, SizesOfShardsAreReadAsTransformersReadsThem) {
  EXPECT_EQ(parse_byte_size("123"), 123);
  EXPECT_EQ(parse_byte_size("40KB"), 40'000);
  EXPECT_EQ(parse_byte_size("500M"), 500'000'000);
  EXPECT_EQ(parse_byte_size("5GB"), 5'000'000'000);
  EXPECT_EQ(parse_byte_size("2GiB"), std::int64_t{2} << 30);
  for (const char* wrong : {"", "GB", "0", "-5GB", "5 GB", "5TB", "1.5GB", "99999999999999999999", "9999999999GB"}) {
    expect_error(ErrorKind::kUsage, {fmt::format("\"{}\" is no size", wrong), "5GB"},
                 [&] { (void)parse_byte_size(wrong); });
  }
}

TEST(HuggingFace, ExportAfterNoStepIsByteIdentical) {
  for (const DecoderConfig& config : {tiny_decoder_config(), tied_config(), qwen2_config()}) {
    for (const char* dtype : {"F32", "BF16", "F16"}) {
      const TemporaryFolder folder;
      make_model_folder(folder / "in", config, {.dtype = dtype, .tensors_per_file = 7});
      for (const int tensor : {1, 2, 3, 4}) {
        const std::filesystem::path output = folder / ("out" + std::to_string(tensor));
        run_ranks(tensor, [&](Communicator& world) {
          load_and_export<float>(world, tensor, config, folder / "in", output, {});
        });
        expect_same_tensors(output, folder / "in");
        for (const char* name : {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
          EXPECT_EQ(read_text_file(output / name, ErrorKind::kUsage),
                    read_text_file(folder / "in" / name, ErrorKind::kUsage));
        }
        EXPECT_TRUE(std::filesystem::exists(output / "model.safetensors"));
        EXPECT_FALSE(std::filesystem::exists(output / "model.safetensors.index.json"));
        EXPECT_FALSE(std::filesystem::exists(output.string() + ".part"));
      }
    }
  }
}

TEST(HuggingFace, ExportInSmallPiecesIsTheSame) {
  const TemporaryFolder folder;
  make_model_folder(folder / "in", qwen2_config(), {.dtype = "BF16"});
  for (const std::int64_t bytes : {1, 300, 1000}) {  // less than a row, some rows, pieces that cut across ranks
    const std::filesystem::path output = folder / ("out" + std::to_string(bytes));
    run_ranks(3, [&](Communicator& world) {
      load_and_export<float>(world, 3, qwen2_config(), folder / "in", output, {.piece_bytes = bytes});
    });
    expect_same_tensors(output, folder / "in");
  }
}

TEST(HuggingFace, OnlyTheFirstDataParallelGroupWrites) {
  const TemporaryFolder folder;
  make_model_folder(folder / "in", tiny_decoder_config());
  run_ranks(4, [&](Communicator& world) {
    load_and_export<float>(world, 2, tiny_decoder_config(), folder / "in", folder / "out", {});
  });
  expect_same_tensors(folder / "out", folder / "in");
}

TEST(HuggingFace, BFloat16ParametersKeepBFloat16Weights) {
  const TemporaryFolder folder;
  make_model_folder(folder / "in", tiny_decoder_config(), {.dtype = "BF16"});
  run_ranks(2, [&](Communicator& world) {
    load_and_export<BFloat16>(world, 2, tiny_decoder_config(), folder / "in", folder / "out", {.dtype = "bfloat16"});
  });
  expect_same_tensors(folder / "out", folder / "in");
  EXPECT_EQ(read_text_file(folder / "out" / "config.json", ErrorKind::kUsage),
            read_text_file(folder / "in" / "config.json", ErrorKind::kUsage));
}

TEST(HuggingFace, AnotherDtypeChangesConfigAndTensors) {
  for (const bool transformers_5 : {false, true}) {
    const TemporaryFolder folder;
    make_model_folder(folder / "in", tiny_decoder_config(), {.dtype = "BF16", .transformers_5 = transformers_5});
    run_ranks(1, [&](Communicator& world) {
      load_and_export<float>(world, 1, tiny_decoder_config(), folder / "in", folder / "out", {.dtype = "float32"});
    });
    nlohmann::json before = read_json_object(folder / "in" / "config.json", ErrorKind::kUsage);
    const nlohmann::json after = read_json_object(folder / "out" / "config.json", ErrorKind::kUsage);
    before[transformers_5 ? "dtype" : "torch_dtype"] = "float32";
    EXPECT_EQ(before, after);
    const WeightFiles source(folder / "in"), exported(folder / "out");
    EXPECT_EQ(exported.dtype(), "F32");
    const std::string name = "model.embed_tokens.weight";
    std::vector<float> a(96 * 32), b(96 * 32);
    source.file(name).read<float>(source.entry(name), {a, 96, 32});
    exported.file(name).read<float>(exported.entry(name), {b, 96, 32});
    EXPECT_EQ(a, b);
  }
}

TEST(HuggingFace, ShardsStayBelowTheirSize) {
  const TemporaryFolder folder;
  const DecoderConfig config = tiny_decoder_config();
  make_model_folder(folder / "in", config);
  run_ranks(2, [&](Communicator& world) {
    load_and_export<float>(world, 2, config, folder / "in", folder / "out", {.max_shard_bytes = 20'000});
  });
  expect_same_tensors(folder / "out", folder / "in");
  const WeightFiles files(folder / "out");
  EXPECT_GT(files.files().size(), 2u);
  std::int64_t total = 0;
  for (const SafetensorsReader& file : files.files()) {
    std::int64_t bytes = 0;
    for (const auto& entry : file.entries()) bytes += entry.bytes();
    EXPECT_LE(bytes, 20'000);
    total += bytes;
  }
  const auto index = read_json_object(folder / "out" / "model.safetensors.index.json", ErrorKind::kUsage);
  EXPECT_EQ(index["metadata"]["total_size"], total);
}

TEST(HuggingFace, ExportRefusesAFullFolderAndUnknownDtypes) {
  const TemporaryFolder folder;
  make_model_folder(folder / "in", tiny_decoder_config());
  const auto run = [&](const std::filesystem::path& output, const ExportOptions& options) {
    run_ranks(1, [&](Communicator& world) {
      load_and_export<float>(world, 1, tiny_decoder_config(), folder / "in", output, options);
    });
  };
  expect_error(ErrorKind::kUsage, {"in", "not an empty folder"}, [&] { run(folder / "in", {}); });
  expect_error(ErrorKind::kUsage, {"float8", "bfloat16"}, [&] { run(folder / "out", {.dtype = "float8"}); });
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  std::filesystem::create_directories(folder / "empty");
  run(folder / "empty" / "", {});
  expect_same_tensors(folder / "empty", folder / "in");
}

void load_single(const std::filesystem::path& folder, const DecoderConfig& config) {
  ParameterSet<float> parameters;
  declare(config, 0, 1, parameters);
  load_hugging_face(folder, config.tie_word_embeddings, parameters);
}

TEST(HuggingFace, TensorsThatDoNotFitAreNamed) {
  const TemporaryFolder folder;
  DecoderConfig config = tiny_decoder_config();
  make_model_folder(folder.path(), config);
  DecoderConfig other = config;
  other.ffn_hidden_size = 64;
  expect_error(ErrorKind::kUsage,
               {"of another shape", "model.layers.0.mlp.gate_proj.weight is [48, 32], config.json means [64, 32]"},
               [&] { load_single(folder.path(), other); });
  other = config;
  other.num_layers = 3;
  expect_error(ErrorKind::kUsage, {"9 missing", "model.layers.2.input_layernorm.weight"},
               [&] { load_single(folder.path(), other); });
  other.num_layers = 0;
  expect_error(ErrorKind::kUsage, {"18 unexpected", "model.layers.0.input_layernorm.weight", ", ..."},
               [&] { load_single(folder.path(), other); });
}

TEST(HuggingFace, ATiedModelMayCarryItsHeadOnlyIfEqual) {
  const TemporaryFolder folder;
  DecoderConfig config = tiny_decoder_config();
  make_model_folder(folder.path(), config);  // a head of its own
  config.tie_word_embeddings = true;
  expect_error(ErrorKind::kUsage, {"lm_head.weight differs", "tie_word_embeddings"},
               [&] { load_single(folder.path(), config); });
  std::vector<SafetensorsTensor> tensors;
  for (const ModelTensor& tensor : model_tensors(config)) {
    tensors.push_back({tensor.name, "F32", {tensor.rows}});
    if (!tensor.is_vector) tensors.back().shape.push_back(tensor.cols);
  }
  tensors.push_back({"lm_head.weight", "F32", {96, 32}});
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {4}});  // old exports have these
  SafetensorsWriter writer(folder / "model.safetensors", tensors);
  for (const SafetensorsTensor& tensor : tensors) {
    std::int64_t size = 1;
    for (const std::int64_t extent : tensor.shape) size *= extent;
    writer.write<float>(tensor.name, std::vector<float>(static_cast<std::size_t>(size), 0.5f));
  }
  writer.finish();
  load_single(folder.path(), config);
}

TEST(HuggingFace, DamagedIndicesAreRefused) {
  const TemporaryFolder folder;
  const DecoderConfig config = tiny_decoder_config();
  make_model_folder(folder.path(), config, {.tensors_per_file = 8});
  const std::filesystem::path path = folder / "model.safetensors.index.json";
  const nlohmann::json sound = read_json_object(path, ErrorKind::kUsage);
  const std::string name = "model.norm.weight";
  const auto refused = [&](const nlohmann::json& index, const std::vector<std::string>& parts) {
    write_file_atomically(path, index.dump());
    expect_error(ErrorKind::kUsage, parts, [&] { WeightFiles{folder.path()}; });
  };
  for (const char* file : {"../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..safetensors",
                           "a\\b.safetensors", "x.bin", ""}) {
    nlohmann::json index = sound;
    index["weight_map"][name] = file;
    refused(index, {"weight_map", name, "same folder"});
  }
  nlohmann::json index = sound;
  index["weight_map"][name] = 7;
  refused(index, {name, "must be a file name"});
  index = sound;
  index["weight_map"][name] = "absent.safetensors";
  refused(index, {"absent.safetensors", "No such file"});
  index = sound;
  index["weight_map"][name] = "model-00001-of-00003.safetensors";
  refused(index, {name, "model-00001-of-00003.safetensors"});
  index = sound;
  index["weight_map"].erase(name);
  refused(index, {name, "does not list"});
  index = sound;
  index["weight_map"]["more"] = "model-00001-of-00003.safetensors";
  refused(index, {"no tensor more"});
  refused(nlohmann::json::object(), {"weight_map must be an object"});
  refused({{"weight_map", nlohmann::json::object()}}, {"weight_map is empty"});
  std::filesystem::remove(path);
  expect_error(ErrorKind::kUsage, {"neither model.safetensors"}, [&] { WeightFiles{folder.path()}; });
}

TEST(HuggingFace, FingerprintIsTheSameFromEveryRankAndChangesWithAByte) {
  const TemporaryFolder folder;
  make_model_folder(folder.path(), tiny_decoder_config(), {.tensors_per_file = 6});
  const std::string alone = model_fingerprint(folder.path());
  EXPECT_EQ(alone.size(), 64u);
  for (const int ranks : {2, 3}) {
    std::mutex mutex;
    run_ranks(ranks, [&](Communicator& world) {
      const std::string together = model_fingerprint(folder.path(), &world);
      const std::lock_guard lock(mutex);
      EXPECT_EQ(together, alone);
    });
  }
  make_model_folder(folder.path(), tiny_decoder_config(), {.tensors_per_file = 6, .seed = 2});
  EXPECT_NE(model_fingerprint(folder.path()), alone);
}

}  // namespace
}  // namespace reprise
