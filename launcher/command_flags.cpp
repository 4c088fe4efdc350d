#include "launcher/command_flags.hpp"

#include "launcher/command_help.hpp"

namespace reprise {

void RankFlags::add_to(CLI::App& command) {
  command.add_option("--ranks", ranks, "Ranks as threads of this process, instead of mpirun")
      ->check(in_range(1, 1024))
      ->type_name("N")
      ->group("Ranks");
  command.add_option("--threads", threads, "CPU threads of a rank (default: its share of the cores)")
      ->check(in_range(1, 4096))
      ->type_name("N")
      ->group("Ranks");
}

RankOptions RankFlags::options(const std::string& transport, std::int64_t tensor) const {
  // Thread ranks without a number are as many as share one model.
  const bool all_tensor = transport == "thread" && ranks == 1;
  return {.transport = transport, .thread_ranks = all_tensor ? static_cast<int>(tensor) : ranks, .threads = threads};
}

void GridFlags::add_to(CLI::App& command) {
  command.add_option("--tensor", tensor, "Ranks that share one copy of the model")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str()
      ->type_name("N")
      ->group("Ranks");
  ranks.add_to(command);
  command.add_option("--device", device.device, "Where ranks compute: auto (a GPU where one is seen), cpu, cuda")
      ->check(one_of({"auto", "cpu", "cuda"}))
      ->capture_default_str()
      ->type_name("DEVICE")
      ->group("Ranks");
}

void RunFileFlags::add_to(CLI::App& command) {
  command.add_option("RUN.toml", file, "Run file (`reprise init` writes one)")->required()->type_name("");
  command.add_option("KEY=VALUE", overrides, "Keys of the run file to override, e.g. optimizer.lr=2e-5")->type_name("");
}

}  // namespace reprise
