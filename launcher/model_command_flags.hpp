#pragma once

#include <CLI/CLI.hpp>

#include "launcher/commands.hpp"

namespace reprise {

// The flags of the commands that take a model or a run instead of a run file; each sets the field of its options that
// it is named after.

void add_flags(CLI::App& command, EvalOptions& options);
void add_flags(CLI::App& command, GenerateOptions& options);
void add_flags(CLI::App& command, ExportCommandOptions& options);

}  // namespace reprise
