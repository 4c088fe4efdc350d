#include "launcher/command_line.hpp"

int main(int argc, char** argv) {
  return reprise::run_command_line(argc, argv);
}
