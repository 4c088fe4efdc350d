// The tables of a GPU: device_bench OUT.json [--tables ceilings,heads,...] [--tiny]
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <thread>

#include "bench/gpu/bench_device.hpp"

namespace reprise {

int BenchDevice::available_threads() {
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace reprise

int main(int argc, char** argv) {
  using namespace reprise;
  const std::vector<std::pair<std::string, std::function<Table(BenchDevice&)>>> tables = {
      {"ceilings", bench_ceilings},     {"heads", bench_heads}, {"collection", bench_collection},
      {"optimizers", bench_optimizers}, {"steps", bench_steps},
  };
  std::vector<std::string> wanted;
  for (const auto& [name, run] : tables) wanted.push_back(name);
  std::string out;
  bool tiny = false;
  CLI::App app("Measures reprise's kernels on GPU 0 beside the limits of that GPU");
  app.add_option("out", out, "JSON file to write")->required();
  app.add_option("--tables", wanted, "which tables, in order; ceilings come first")->delimiter(',');
  app.add_flag("--tiny", tiny, "shapes for a check of this program; the times mean nothing");
  CLI11_PARSE(app, argc, argv);

  try {
    BenchDevice device(tiny);
    const CudaDeviceInfo info = cuda_device_info(0);
    nlohmann::ordered_json results = {{"device",
                                       {{"name", info.name},
                                        {"memory_bytes", info.memory_bytes},
                                        {"l2_bytes", info.l2_bytes},
                                        {"multiprocessors", info.multiprocessors},
                                        {"capability", info.capability}}},
                                      {"tiny", tiny}};
    for (const auto& [name, run] : tables) {
      if (std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
      results[name] = run(device);
      std::ofstream(out) << results.dump(1) << '\n';  // after every table: a later one may be cut short
      std::printf("%s\n%s\n", name.c_str(), results[name].dump().c_str());
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "device_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
