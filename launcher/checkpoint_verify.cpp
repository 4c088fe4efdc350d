#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/strict_json.hpp"
#include "launcher/checkpoint_manifest.hpp"
#include "launcher/safetensors.hpp"
#include "parallel/agree.hpp"

namespace reprise {

namespace {

/// The file is whole; does it also hold the tensors that the manifest says?
void check_tensors(const std::filesystem::path& folder, const CheckpointManifest& manifest, const StoredFile& file,
                   std::vector<std::string>& problems) {
  const SafetensorsReader reader(folder / file.name, ErrorKind::kCheckpoint);
  for (const StoredPiece& piece : file.pieces) {
    for (const char* kind : kStateKinds) {
      const std::string name =
          tensor_name(manifest.parameters[static_cast<std::size_t>(piece.parameter)].name, kind, piece);
      const SafetensorsEntry* entry = reader.find(name);
      if (entry == nullptr) {
        problems.push_back(fmt::format("{}: has no tensor \"{}\"", reader.path().string(), name));
      } else if (entry->dtype != "F32" || entry->shape != std::vector<std::int64_t>{piece.elements.size()}) {
        problems.push_back(fmt::format("{}: tensor \"{}\" is not F32 of shape [{}]", reader.path().string(), name,
                                       piece.elements.size()));
      }
    }
  }
}

std::optional<FoundCheckpoint> find_alone(const std::filesystem::path& root) {
  FoundCheckpoint found;
  const auto checkpoints = list_checkpoints(root);
  for (auto info = checkpoints.rbegin(); info != checkpoints.rend(); ++info) {
    const auto problems = verify_checkpoint(info->folder);
    if (problems.empty()) {
      found.folder = info->folder;
      return found;
    }
    found.passed_over.push_back(fmt::format("{}: {}", info->folder.filename().string(), problems.front()));
  }
  return std::nullopt;
}

}  // namespace

std::vector<std::string> verify_checkpoint(const std::filesystem::path& folder) {
  CheckpointManifest manifest;
  try {
    manifest = read_manifest(folder);
  } catch (const Error& error) {
    return {error.what()};
  }
  std::vector<std::string> problems = coverage_problems(manifest);
  for (const StoredFile& file : manifest.files) {
    const std::string problem = file_problem(folder, file);
    if (!problem.empty()) {
      problems.push_back(problem);
      continue;
    }
    try {
      check_tensors(folder, manifest, file, problems);
    } catch (const Error& error) {
      problems.push_back(error.what());
    }
  }
  return problems;
}

std::optional<FoundCheckpoint> find_checkpoint(Communicator& world, const std::filesystem::path& root) {
  std::string text;
  agree(world, [&] {
    if (world.rank() != 0) return;
    const auto found = find_alone(root);
    if (found) text = nlohmann::json{{"folder", found->folder.string()}, {"passed_over", found->passed_over}}.dump();
  });
  const Stream stream{CpuStream{}};
  std::vector<std::int64_t> size{static_cast<std::int64_t>(text.size())};
  world.broadcast<std::int64_t>(stream, size, 0);
  std::vector<std::uint8_t> bytes(text.begin(), text.end());
  bytes.resize(static_cast<std::size_t>(size[0]));
  world.broadcast<std::uint8_t>(stream, bytes, 0);
  if (bytes.empty()) return std::nullopt;
  const auto json =
      parse_strict_json(std::string(bytes.begin(), bytes.end()), "the found checkpoint", ErrorKind::kInternal);
  return FoundCheckpoint{json.at("folder").get<std::string>(), json.at("passed_over").get<std::vector<std::string>>()};
}

}  // namespace reprise
