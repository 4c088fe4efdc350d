#include "launcher/command_line.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "launcher/command_flags.hpp"
#include "launcher/command_help.hpp"
#include "launcher/commands.hpp"
#include "launcher/launch_environment.hpp"
#include "launcher/model_command_flags.hpp"
#include "launcher/plan.hpp"
#include "launcher/session.hpp"

namespace reprise {

namespace {

constexpr const char* kDescription =
    "reprise post-trains a language model on a domain without losing what it knew, at a fraction of the loss head's "
    "cost.";

constexpr const char* kFooter = R"(A run, from nothing to a model:
  python -m reprise prepare chats.jsonl --tokenizer MODEL --out data/domain
  reprise init run.toml model.path=MODEL data.train=data/domain
  reprise check run.toml
  mpirun -n 2 --bind-to none reprise collect run.toml
  mpirun -n 2 --bind-to none reprise train run.toml optimizer.lr=2e-5
  reprise export --run runs/default --out MODEL-domain

Every command has its own help: reprise train --help. Exit codes: 0 done, 2 run file, flags
or model folder, 3 data, 4 store of something else, 5 checkpoint, 6 not finite,
7 communication, 8 disk, 75 stopped with a checkpoint (run the same command again).)";

/// The command line of the program. Each command leaves its work in `action_`.
class CommandLine {
 public:
  CommandLine(int argc, char** argv) : argc_(argc), argv_(argv), app_(kDescription, "reprise") {
    app_.footer(kFooter);
    app_.set_version_flag("--version", std::string("reprise ") + REPRISE_VERSION, "Print the version");
    app_.set_help_flag("-h,--help", "Print this help");
    app_.require_subcommand(1);
    app_.formatter(std::make_shared<HelpFormatter>());
    app_.get_formatter()->column_width(22);
    app_.get_formatter()->label("OPTIONS", "options");
    app_.get_formatter()->label("SUBCOMMAND", "COMMAND");
    add_doctor();
    add_init();
    add_check();
    add_plan();
    add_collect();
    add_train();
    add_eval();
    add_generate();
    add_export();
    add_store();
    add_checkpoint();
  }

  int run() {
    const bool speaks = detect_launch().rank == 0;
    try {
      if (argc_ > 1) check_command_name(app_, argv_[1]);
      app_.parse(argc_, argv_);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == 0) {  // --help, --version
        const bool version = error.get_name() == "CallForVersion";
        if (speaks) fmt::print("{}", without_gaps(version ? error.what() : app_.help()));
        return 0;
      }
      std::string command;
      for (CLI::App* app = &app_; !app->get_subcommands().empty();) {
        app = app->get_subcommands()[0];
        command += app->get_name() + " ";
      }
      return refuse(fmt::format("{}\nsee: reprise {}--help", error.what(), command));
    } catch (const Error& error) {
      return refuse(error.what());
    }
    return action_();
  }

 private:
  CLI::App& command(const std::string& name, const std::string& what, const std::string& group,
                    const std::string& details) {
    CLI::App& added = *app_.add_subcommand(name, what);
    added.group(group)->footer(details);
    return added;
  }
  /// What one process does; the others of an mpirun are idle.
  void set_single(CLI::App& command, std::function<int()> work) {
    command.callback([this, work = std::move(work)] {
      action_ = [work] { return detect_launch().rank == 0 ? report_failures(work) : 0; };
    });
  }
  /// A wrong command line, which all ranks see alike.
  int refuse(const std::string& message) {
    return ranked({}, [&](Communicator&, int) { throw Error(ErrorKind::kUsage, message); });
  }
  using RankWork = std::function<void(Communicator& world, int threads)>;
  int ranked(const RankOptions& options, const RankWork& work) { return run_ranked(argc_, argv_, options, work); }

  void add_doctor() {
    CLI::App& added = command("doctor", "Look at this machine: cores, memory, MPI, libraries, limits", "Before a run",
                              "Exit code 2 when something would go wrong.\nExample: mpirun -n 2 --bind-to none reprise "
                              "doctor run.toml");
    added.add_option("RUN.toml", doctor_file_, "Look at the paths of this run file, too")->type_name("");
    added.callback([this] {
      action_ = [this] {
        const auto exit_code = [](int problems) { return problems == 0 ? 0 : static_cast<int>(ErrorKind::kUsage); };
        if (!detect_launch().mpi) {
          return report_failures([&] { return exit_code(doctor_command(doctor_file_, nullptr)); });
        }
        int problems = 0;
        const int code = ranked({.transport = "mpi", .thread_ranks = 1, .threads = 0},
                                [&](Communicator& world, int) { problems = doctor_command(doctor_file_, &world); });
        return code != 0 ? code : exit_code(problems);
      };
    });
  }

  void add_init() {
    CLI::App& added = command("init", "Write a commented run file with every key", "Before a run",
                              "Example: reprise init run.toml model.path=models/Llama-3.1-8B data.train=data/domain");
    init_.file = "run.toml";
    added.add_option("RUN.toml", init_.file, "File to be written")->capture_default_str()->type_name("");
    added.add_option("KEY=VALUE", init_.overrides, "Values to write instead of the defaults")->type_name("");
    set_single(added, [this] {
      init_command(init_.file, init_.overrides);
      return 0;
    });
  }

  void add_check() {
    CLI::App& added = command("check", "Validate a run and say what it needs, without computing", "Before a run",
                              "Examples:\n  reprise check run.toml\n  reprise check run.toml --world 64 "
                              "parallel.tensor=8");
    check_.add_to(added);
    added.add_option("--world", world_size_, "Ranks of the run to plan for (default: parallel.tensor)")
        ->check(in_range(1, 1 << 20))
        ->type_name("N");
    added.add_flag("--json", json_, "Print JSON");
    set_single(added, [this] {
      const RunConfig config = check_.read();
      check_command(config, world_size_ > 0 ? world_size_ : config.parallel.tensor, json_);
      return 0;
    });
  }

  void add_plan() {
    CLI::App& added = command("plan", "Memory, time and cost on any hardware, from config.json alone", "Before a run",
                              "No weights and no data are needed. Examples:\n  reprise plan configs/llama3_8b.toml "
                              "model.path=configs/models/llama3-8b --world 64\n  reprise plan run.toml --world 64 "
                              "--hardware h200 --sweep\n  reprise plan --against configs/scaling/published.json");
    added.add_option("RUN.toml", plan_.file, "Run file (`reprise init` writes one)")->type_name("");
    added.add_option("KEY=VALUE", plan_.overrides, "Keys of the run file to override")->type_name("");
    std::vector<std::string> names;
    for (const Hardware& hardware : hardware_table()) names.push_back(hardware.name);
    added.add_option("--world", world_size_, "Ranks (default: parallel.tensor)")
        ->check(in_range(1, 1 << 20))
        ->type_name("N");
    added.add_option("--hardware", plan_options_.hardware, fmt::format("{}", fmt::join(names, ", ")))
        ->check(one_of(names))
        ->capture_default_str()
        ->type_name("NAME");
    added
        .add_option("--tokens-per-step", plan_options_.tokens_per_step,
                    "Over all ranks (default: the data's, or full rows)")
        ->check(at_least_one())
        ->type_name("N");
    added.add_option("--targets-share", plan_options_.targets_share, "Of the tokens (default: the data's, or 1)")
        ->check(CLI::Range(0.0, 1.0).description(""))
        ->type_name("SHARE");
    added
        .add_option("--data-tokens", plan_options_.data_tokens,
                    "Of the training data, where it is not there to be read")
        ->check(at_least_one())
        ->type_name("N");
    added.add_flag("--sweep", sweep_, "Propose layouts that fit, fastest first");
    added.add_option("--against", path_, "Predict the measured steps of this file and print the errors")
        ->type_name("FILE");
    added.add_flag("--json", json_, "Print JSON");
    set_single(added, [this] {
      if (!path_.empty()) return plan_against_command(path_), 0;
      require(!plan_.file.empty(), ErrorKind::kUsage, "RUN.toml is required\nsee: reprise plan --help");
      const RunConfig config = plan_.read();
      plan_options_.world_size = world_size_ > 0 ? world_size_ : config.parallel.tensor;
      return plan_command(config, plan_options_, sweep_, json_), 0;
    });
  }

  void add_collect() {
    CLI::App& added = command("collect", "Stage 0: record the replay store with the base model", "A run",
                              "A killed collection goes on where it stopped; a finished store is left alone.\nExample: "
                              "mpirun -n 8 --bind-to none reprise collect run.toml parallel.tensor=8");
    collect_.add_to(added);
    added.add_flag("--fresh", fresh_, "Remove the store that is there and start over");
    ranks_.add_to(added);
    added.callback([this] {
      action_ = [this] {
        return in_session(collect_,
                          [&](Session& session, const RunConfig& config) { collect_command(session, config, fresh_); });
      };
    });
  }

  void add_train() {
    CLI::App& added =
        command("train", "Stage 1: train; goes on from the newest checkpoint by itself", "A run",
                "SIGUSR1 and SIGTERM: finish the step, write a checkpoint, exit 75.\nExamples:\n  mpirun -n "
                "8 --bind-to none reprise train run.toml parallel.tensor=4\n  reprise train run.toml "
                "--ranks 2 parallel.tensor=2 train.steps=20");
    train_.add_to(added);
    added.add_flag("--fresh", fresh_, "Remove metrics and checkpoints of the run folder and start over");
    added.add_option("--stop-after", stop_after_, "Write a checkpoint and exit 75 after this many steps")
        ->check(at_least_one())
        ->type_name("STEPS");
    ranks_.add_to(added);
    added.callback([this] {
      action_ = [this] {
        const TrainFlags flags{.fresh = fresh_, .stop_after = stop_after_};
        return in_session(train_,
                          [&](Session& session, const RunConfig& config) { train_command(session, config, flags); });
      };
    });
  }

  void add_eval() {
    CLI::App& added = command(
        "eval", "Loss, accuracy and log-probabilities of a model on data or choices", "Models",
        "Choices are JSON lines of token ids; `python -m reprise choices` makes them from texts.\nExamples:\n  mpirun "
        "-n 2 --bind-to none reprise eval --model MODEL --data data/test --json\n  reprise eval --model MODEL --data "
        "data/domain --store store\n  reprise eval --model MODEL --choices mmlu.jsonl");
    add_flags(added, eval_);
    grid_.add_to(added);
    added.callback([this] {
      require(!eval_.data.empty() || !eval_.choices.empty(), ErrorKind::kUsage,
              "nothing to evaluate on: give --data PREFIX or --choices FILE\nsee: reprise eval --help");
      action_ = [this] { return in_grid(grid_.device, [&](Session& session) { eval_command(session, eval_); }); };
    });
  }

  void add_generate() {
    CLI::App& added = command(
        "generate", "Continue prompts with a model", "Models",
        "Token ids in, token ids out. Texts: `python -m reprise prepare` makes ids of them, and\ntokenizers."
        "Tokenizer.from_file(\"MODEL/tokenizer.json\").decode(line[\"tokens\"]) makes texts of\nthe lines. The "
        "order of the rules is temperature, top-k, top-p; the same seed gives the same\ntexts whatever the batch and "
        "the ranks.\nExamples:\n  reprise generate --model MODEL --data data/test --out answers.jsonl\n  reprise "
        "generate --model MODEL --prompts prompts.jsonl --temperature 0.7 --top-p 0.9\n    --num-samples 4");
    add_flags(added, generate_);
    grid_.add_to(added);
    added.callback([this] {
      require(!generate_.data.empty() || !generate_.prompts.empty() || !generate_.prompt.empty(), ErrorKind::kUsage,
              "nothing to continue: give --data PREFIX, --prompts FILE or --prompt IDS\nsee: reprise generate --help");
      action_ = [this] {
        return in_grid(grid_.device, [&](Session& session) { generate_command(session, generate_); });
      };
    });
  }

  void add_export() {
    CLI::App& added = command("export", "Write a checkpoint as a Hugging Face or adapter folder", "Models",
                              "Example: reprise export --run runs/default --out MODEL-domain --dtype bfloat16");
    add_flags(added, export_);
    grid_.add_to(added);
    added.callback([this] {
      action_ = [this] {
        return in_grid(device_of_export(), [&](Session& session) { export_command(session, export_); });
      };
    });
  }

  void add_store() {
    CLI::App& store =
        command("store", "Look into a replay store: info, verify, show", "Files", "Example: reprise store info store");
    store.require_subcommand(1);
    CLI::App& info = *store.add_subcommand("info", "Sizes, set statistics and provenance");
    add_path(info, "STORE", "Store folder");
    info.add_flag("--json", json_, "Print JSON");
    set_single(info, [this] { return store_info_command(path_, json_), 0; });
    CLI::App& verify = *store.add_subcommand("verify", "Read everything and check it");
    add_path(verify, "STORE", "Store folder");
    set_single(verify, [this] { return store_verify_command(path_), 0; });
    CLI::App& show = *store.add_subcommand("show", "The records of one sample");
    add_path(show, "STORE", "Store folder");
    show.add_option("SAMPLE", sample_, "Sample id: the document's index in the data")->required()->type_name("");
    show.add_option("--limit", limit_, "Records to print at most")
        ->check(at_least_one())
        ->capture_default_str()
        ->type_name("N");
    set_single(show, [this] { return store_show_command(path_, sample_, limit_), 0; });
  }

  void add_checkpoint() {
    CLI::App& checkpoint = command("checkpoint", "Look at checkpoints: list, verify", "Files",
                                   "Example: reprise checkpoint verify runs/default");
    checkpoint.require_subcommand(1);
    CLI::App& list = *checkpoint.add_subcommand("list", "Checkpoints of a run");
    add_path(list, "RUN", "Run folder");
    list.add_flag("--json", json_, "Print JSON");
    set_single(list, [this] { return checkpoint_list_command(path_, json_), 0; });
    CLI::App& verify = *checkpoint.add_subcommand("verify", "Check manifests, sizes, hashes and coverage");
    add_path(verify, "RUN|CHECKPOINT", "Run folder (all of its checkpoints), or one checkpoint");
    set_single(verify, [this] { return checkpoint_verify_command(path_), 0; });
  }

  void add_path(CLI::App& command, const std::string& name, const std::string& what) {
    command.add_option(name, path_, what)->required()->type_name("");
  }
  int in_session(const RunFileFlags& file, const std::function<void(Session& session, const RunConfig& config)>& work) {
    const auto run = [&](const RunConfig& config, Communicator& world, int threads) {
      Session session(world, config.parallel.tensor, config.parallel.sequence_parallel, threads,
                      config.device_options());
      work(session, config);
    };
    if (detect_launch().mpi) {
      return ranked(ranks_.options("mpi", 1), [&](Communicator& world, int threads) {
        const RunConfig config = file.read();
        check_transport(ranks_.options(config.parallel.transport, config.parallel.tensor));
        run(config, world, threads);
      });
    }
    return report_failures([&] {
      const RunConfig config = file.read();
      return ranked(ranks_.options(config.parallel.transport, config.parallel.tensor),
                    [&](Communicator& world, int threads) { run(config, world, threads); });
    });
  }
  int in_grid(const DeviceOptions& device, const std::function<void(Session& session)>& work) {
    return ranked(grid_.ranks.options("auto", grid_.tensor), [&](Communicator& world, int threads) {
      Session session(world, grid_.tensor, false, threads, device);
      work(session);
    });
  }

  /// An export computes nothing, so it leaves GPUs to others unless it is told.
  [[nodiscard]] DeviceOptions device_of_export() const {
    DeviceOptions device = grid_.device;
    if (device.device == "auto") device.device = "cpu";
    return device;
  }

  int argc_;
  char** argv_;
  CLI::App app_;
  std::function<int()> action_;

  std::string doctor_file_;
  RunFileFlags init_, check_, plan_, collect_, train_;
  RankFlags ranks_;
  GridFlags grid_;
  EvalOptions eval_;
  GenerateOptions generate_;
  ExportCommandOptions export_;
  std::string path_;
  std::uint64_t sample_ = 0;
  std::int64_t limit_ = 20, world_size_ = 0, stop_after_ = -1;
  PlanOptions plan_options_;
  bool json_ = false, sweep_ = false, fresh_ = false;
};

}  // namespace

int run_command_line(int argc, char** argv) {
  return CommandLine(argc, argv).run();
}

}  // namespace reprise
