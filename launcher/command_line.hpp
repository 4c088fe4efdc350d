#pragma once

namespace reprise {

/// Carries out the command that the words name, and returns the exit code of the process. Under mpirun or srun all
/// ranks call it alike.
[[nodiscard]] int run_command_line(int argc, char** argv);

}  // namespace reprise
