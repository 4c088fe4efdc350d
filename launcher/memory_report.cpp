#include "launcher/memory_report.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/file_io.hpp"
#include "launcher/progress.hpp"
#include "launcher/text_table.hpp"

namespace reprise {

namespace {

/// Of the sum that was foreseen.
std::string deviation(std::int64_t foreseen, std::int64_t measured) {
  if (measured == 0) return "";
  return fmt::format("{:+.1f} %", 100.0 * (static_cast<double>(foreseen) / static_cast<double>(measured) - 1.0));
}

}  // namespace

MeasuredMemory largest_of_ranks(Session& session, const MeasuredMemory& own) {
  std::array<std::int64_t, 6> bytes{own.weights, own.gradients, own.optimizer, own.arena, own.gpu, own.process};
  session.world().all_reduce<std::int64_t>(session.host(), {bytes.data(), std::ssize(bytes)}, ReduceOp::kMax);
  return {bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]};
}

std::string describe_memory(const MemoryEstimate& foreseen, const MeasuredMemory& measured) {
  TextTable table("lrrr");
  const auto add = [&](const char* what, std::int64_t expected, std::int64_t found) {
    table.add({what, format_bytes(expected), format_bytes(found), deviation(expected, found)});
  };
  table.add({"memory of a rank", "foreseen", "peak", ""});
  add("weights", foreseen.weights, measured.weights);
  add("gradients", foreseen.gradients, measured.gradients);
  add("optimizer", foreseen.optimizer, measured.optimizer);
  add("activations and loss head", foreseen.arena(), measured.arena);
  if (measured.gpu > 0) add("GPU, all together", foreseen.device(), measured.gpu);
  add(measured.gpu > 0 ? "process" : "process, all together", measured.gpu > 0 ? foreseen.host() : foreseen.total(),
      measured.process);
  return table.text();
}

void write_memory_json(const std::filesystem::path& folder, const MemoryEstimate& foreseen,
                       const MeasuredMemory& measured) {
  nlohmann::ordered_json json;
  json["foreseen"] = {{"weights", foreseen.weights},     {"gradients", foreseen.gradients},
                      {"optimizer", foreseen.optimizer}, {"activations", foreseen.activations},
                      {"head", foreseen.head},           {"arena", foreseen.arena()},
                      {"workspace", foreseen.workspace}, {"store", foreseen.store},
                      {"batches", foreseen.batches},     {"program", foreseen.program},
                      {"device", foreseen.device()},     {"host", foreseen.host()},
                      {"total", foreseen.total()}};
  json["peak"] = {{"weights", measured.weights},
                  {"gradients", measured.gradients},
                  {"optimizer", measured.optimizer},
                  {"arena", measured.arena},
                  {"gpu", measured.gpu},
                  {"process", measured.process}};
  write_file_atomically(folder / "memory.json", json.dump(2) + "\n");
}

}  // namespace reprise
