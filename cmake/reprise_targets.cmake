# One static library per folder. Sources are listed in the folder's CMakeLists.txt.
#   reprise_library(core error.cpp ... LINK PUBLIC fmt::fmt ...)
function(reprise_library name)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  add_library(reprise_${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  target_include_directories(reprise_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  reprise_compile_options(reprise_${name})
  if(ARG_LINK)
    target_link_libraries(reprise_${name} ${ARG_LINK})
  endif()
endfunction()

function(reprise_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -Wshadow -fno-math-errno)
  if(REPRISE_WARNINGS_AS_ERRORS)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(REPRISE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${REPRISE_SANITIZE} -fno-omit-frame-pointer -g)
    target_link_options(${target} PUBLIC -fsanitize=${REPRISE_SANITIZE})
  endif()
endfunction()

# Compiles one kernel source three times, in the namespaces portable, avx2 and avx512 (macro REPRISE_SIMD). Such a file
# defines nothing but its kernels in that namespace and calls no inline function of any other header: the linker keeps
# one copy of an inline function, and it could be the one with instructions that the machine lacks.
#   reprise_simd_sources(reprise_core elementwise_simd.cpp)
function(reprise_simd_sources target source)
  get_filename_component(stem ${source} NAME_WE)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(levels portable avx2 avx512)
  else()
    set(levels portable)
  endif()
  set(flags_portable -DREPRISE_SIMD_WIDTH=4)
  set(flags_avx2 -DREPRISE_SIMD_WIDTH=8 -mavx2 -mfma -mf16c)
  set(flags_avx512 -DREPRISE_SIMD_WIDTH=16 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512)
  foreach(level ${levels})
    add_library(${target}_${stem}_${level} OBJECT ${source})
    target_include_directories(${target}_${stem}_${level} PRIVATE ${CMAKE_SOURCE_DIR})
    target_compile_definitions(${target}_${stem}_${level} PRIVATE REPRISE_SIMD=${level})
    target_compile_options(${target}_${stem}_${level} PRIVATE -O3 ${flags_${level}})
    reprise_compile_options(${target}_${stem}_${level})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${stem}_${level}>)
  endforeach()
endfunction()

# A GoogleTest program whose every test is known to ctest.
#   reprise_test(core_tests error_test.cpp ... LINK reprise_core)
function(reprise_test name)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  reprise_compile_options(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gtest GTest::gtest_main)
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT 300)
endfunction()

# A GoogleTest program that runs under mpirun, once per rank count (ctest names: <name>.ranks_<n>). The tests get their
# world from mpi_test_world() of tests/support/mpi_test_main.hpp; the main is linked in.
#   reprise_mpi_test(parallel_mpi_tests communicator_mpi_test.cpp RANKS 1 2 4 LINK reprise_parallel)
function(reprise_mpi_test name)
  cmake_parse_arguments(ARG "" "" "RANKS;LINK" ${ARGN})
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS} ${CMAKE_SOURCE_DIR}/tests/support/mpi_test_main.cpp)
  reprise_compile_options(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} reprise_parallel GTest::gtest)
  foreach(ranks ${ARG_RANKS})
    add_test(NAME ${name}.ranks_${ranks} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} --oversubscribe
                                                 $<TARGET_FILE:${name}>)
    reprise_mpi_test_properties(${name}.ranks_${ranks} ${ranks})
  endforeach()
endfunction()

# Lets mpirun start as root, with more ranks than cores and without pinning them on top of each other.
function(reprise_mpi_test_properties test ranks)
  set(environment OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
      OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1
      OMPI_MCA_btl_vader_single_copy_mechanism=none)
  if(REPRISE_SANITIZE MATCHES "address")
    list(APPEND environment ASAN_OPTIONS=detect_leaks=0) # MPI keeps memory until the process ends
  endif()
  set_tests_properties(${test} PROPERTIES TIMEOUT 120 PROCESSORS ${ranks} ENVIRONMENT "${environment}")
endfunction()
