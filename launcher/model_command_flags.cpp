#include "launcher/model_command_flags.hpp"

#include <string>

#include "launcher/command_help.hpp"

namespace reprise {

namespace {

template <class Options>
void add_model_flags(CLI::App& command, Options& options) {
  command.add_option("--model", options.model, "Hugging Face folder")->required()->type_name("FOLDER");
  command.add_option("--adapter", options.adapter, "PEFT folder of adapters beside the model")->type_name("FOLDER");
  command.add_option("--dtype", options.dtype, "Storage while computing")
      ->check(one_of({"float32", "bfloat16"}))
      ->capture_default_str()
      ->type_name("DTYPE");
  command
      .add_option("--vocab-size", options.vocab_size, "Ids that may occur (default: those of tokenizer.json, else all)")
      ->check(at_least_one())
      ->type_name("N");
}

void add_sampling_flags(CLI::App& command, GenerateOptions& options) {
  command.add_option("--num-samples", options.num_samples, "Texts for each prompt, drawn apart")
      ->check(at_least_one())
      ->capture_default_str()
      ->type_name("N");
  command.add_option("--temperature", options.temperature, "0 takes the most probable token")
      ->check(not_negative())
      ->capture_default_str()
      ->type_name("T");
  command.add_option("--top-k", options.top_k, "Draw from the K most probable tokens; 0 = all")
      ->check(not_negative())
      ->capture_default_str()
      ->type_name("K");
  command.add_option("--top-p", options.top_p, "Draw from the fewest most probable tokens of together P or more")
      ->capture_default_str()
      ->type_name("P");
  command.add_option("--seed", options.seed, "Of the draws at a temperature above 0")
      ->check(not_negative())
      ->capture_default_str()
      ->type_name("N");
}

}  // namespace

void add_flags(CLI::App& command, EvalOptions& options) {
  add_model_flags(command, options);
  auto* data = command.add_option("--data", options.data, "Prefix of .bin .idx (.mask.bin); several are told apart");
  data->type_name("PREFIX...");
  auto* choices = command.add_option("--choices", options.choices, "Multiple choice: context, choices, answer a line");
  choices->excludes(data)->type_name("FILE.jsonl");
  command.add_option("--store", options.store, "Measure the probability outside the sets of this replay store, too")
      ->excludes(choices)
      ->type_name("STORE");
  command
      .add_option("--sequence-length", options.sequence_length, "Longer samples are cut (default: the model's limit)")
      ->check(at_least_one())
      ->type_name("N");
  command.add_option("--micro-batch", options.micro_batch, "Samples at a time")
      ->check(at_least_one())
      ->capture_default_str()
      ->type_name("N");
  command
      .add_option("--per-token", options.per_token, "Write the log-probability of every target token, in data order")
      ->excludes(choices)
      ->type_name("FILE.npy");
  command.add_option("--per-sample", options.per_sample, "Write a line for every sample or choice item")
      ->type_name("FILE.jsonl");
  command.add_flag("--json", options.json, "Print JSON, a line for each prefix");
}

void add_flags(CLI::App& command, GenerateOptions& options) {
  add_model_flags(command, options);
  auto* data = command.add_option("--data", options.data,
                                  "Prefix of .bin .idx .mask.bin: what precedes the first trained token is a prompt");
  data->type_name("PREFIX");
  auto* prompts = command.add_option("--prompts", options.prompts, "JSON lines {\"tokens\": [ids]}, one a prompt");
  prompts->excludes(data)->type_name("FILE.jsonl");
  command.add_option("--prompt", options.prompt, "One prompt as token ids, e.g. 1,15,27")
      ->delimiter(',')
      ->excludes(data)
      ->excludes(prompts)
      ->type_name("IDS");
  command.add_option("--max-tokens", options.max_tokens, "New tokens a prompt at most")
      ->check(at_least_one())
      ->capture_default_str()
      ->type_name("N");
  command.add_option("--batch", options.batch, "Prompts at a time; the next takes the place of one that ends")
      ->check(at_least_one())
      ->capture_default_str()
      ->type_name("N");
  add_sampling_flags(command, options);
  command.add_option("--stop-ids", options.stop_ids, "Token ids that end a text, beside the model's end tokens")
      ->delimiter(',')
      ->type_name("IDS");
  command.add_flag("--ignore-eos", options.ignore_eos, "Do not end at the model's end tokens");
  command.add_flag("--log-probs", options.log_probs, "Add each token's log-probability under the model");
  command.add_option("--out", options.output, "JSONL file (default: standard output)")->type_name("FILE");
}

void add_flags(CLI::App& command, ExportCommandOptions& options) {
  command.add_option("--run", options.run, "Run folder")->required()->type_name("FOLDER");
  command.add_option("--out", options.output, "Folder to be made")->required()->type_name("FOLDER");
  command.add_option("--dtype", options.dtype, "Of the tensors; source = as each came in")
      ->check(one_of({"source", "float32", "bfloat16", "float16"}))
      ->capture_default_str()
      ->type_name("DTYPE");
  auto* step =
      command.add_option("--step", options.step, "Checkpoint of this step (default: the newest that verifies)");
  step->check(not_negative())->type_name("N");
  command.add_option("--max-shard-size", options.max_shard_size, "A new weight file before this size, e.g. 500MB, 5GB")
      ->capture_default_str()
      ->type_name("SIZE");
  command.add_flag("--merge", options.merge, "Of a run with [lora]: the whole model with its adapters merged in");
  command.add_flag("--best", options.best, "The checkpoint with the lowest evaluation loss")->excludes(step);
}

}  // namespace reprise
