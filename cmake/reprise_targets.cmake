# One static library per folder: reprise_<name>. Sources are listed in the folder's CMakeLists.txt.
#   reprise_library(core arena.cpp ... PLAIN error.cpp ... CPU trace.cpp CUDA elementwise.cu gemm_cuda.cpp ...
#                   DEFINE NAME ... LINK PUBLIC fmt::fmt ...)
# PLAIN: sources that see no stream. CPU: for builds without CUDA alone. CUDA: for builds with it, and the sign that the
# folder knows the device. With REPRISE_EMULATED_TESTS a folder with CUDA has a second library, reprise_<name>_emulated,
# whose CUDA sources are compiled by g++ for the emulated device (docs/kernels.md); LINK names the ordinary libraries.
function(reprise_library name)
  cmake_parse_arguments(ARG "" "" "PLAIN;CPU;CUDA;DEFINE;LINK" ${ARGN})
  set(knows_cuda FALSE)
  if(ARG_CUDA OR "CUDA" IN_LIST ARG_KEYWORDS_MISSING_VALUES)
    set(knows_cuda TRUE)
  endif()

  set(plain_objects "")
  if(ARG_PLAIN) # compiled once for both libraries
    add_library(reprise_${name}_plain OBJECT ${ARG_PLAIN})
    set(external ${ARG_LINK})
    list(FILTER external EXCLUDE REGEX "^(PUBLIC|PRIVATE|reprise_.*)$")
    target_include_directories(reprise_${name}_plain PRIVATE ${CMAKE_SOURCE_DIR})
    target_compile_definitions(reprise_${name}_plain PRIVATE REPRISE_PLAIN_SOURCE ${ARG_DEFINE})
    target_link_libraries(reprise_${name}_plain PRIVATE ${external})
    reprise_compile_options(reprise_${name}_plain)
    set(plain_objects $<TARGET_OBJECTS:reprise_${name}_plain>)
  endif()

  add_library(reprise_${name} STATIC ${ARG_UNPARSED_ARGUMENTS} ${plain_objects})
  reprise_finish_library(reprise_${name} ${REPRISE_CUDA})
  if(REPRISE_CUDA STREQUAL "emulated")
    add_library(reprise_${name}_emulated ALIAS reprise_${name})
  elseif(REPRISE_EMULATED_TESTS AND knows_cuda)
    add_library(reprise_${name}_emulated STATIC ${ARG_UNPARSED_ARGUMENTS} ${plain_objects})
    list(TRANSFORM ARG_LINK APPEND "_emulated" REGEX "^reprise_[a-z]+$")
    reprise_finish_library(reprise_${name}_emulated emulated)
  endif()
endfunction()

# The part of reprise_library that is the same for both libraries; sees its ARG_ variables.
macro(reprise_finish_library target device)
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
  target_compile_definitions(${target} PRIVATE ${ARG_DEFINE})
  reprise_compile_options(${target})
  if(ARG_LINK)
    target_link_libraries(${target} ${ARG_LINK})
  endif()
  if(${device} STREQUAL "off")
    target_sources(${target} PRIVATE ${ARG_CPU})
  else()
    reprise_cuda_device(${target} ${device})
    reprise_cuda_sources(${target} ${ARG_CUDA})
  endif()
endmacro()

# Makes a target that knows CUDA: on, or emulated.
function(reprise_cuda_device target device)
  set_target_properties(${target} PROPERTIES REPRISE_DEVICE ${device})
  target_compile_definitions(${target} PUBLIC REPRISE_WITH_CUDA)
  if(device STREQUAL "emulated")
    target_compile_definitions(${target} PUBLIC REPRISE_CUDA_EMULATED)
    target_link_libraries(${target} PUBLIC reprise_cuda_emulation)
  else()
    target_link_libraries(${target} PUBLIC CUDA::cudart_static CUDA::cublasLt)
  endif()
endfunction()

# Adds .cu and _cuda.cpp sources to a target that knows CUDA. nvcc compiles .cu files; for the emulated device g++ does,
# through a source that includes it (one folder may need both).
#   reprise_cuda_sources(reprise_core elementwise.cu gemm_cuda.cpp)
function(reprise_cuda_sources target)
  get_target_property(device ${target} REPRISE_DEVICE)
  foreach(source ${ARGN})
    get_filename_component(path ${source} ABSOLUTE)
    if(device STREQUAL "emulated" AND source MATCHES "[.]cu$")
      set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/emulated/${source}.cpp)
      file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${path}\"\n" @ONLY)
      set_source_files_properties(${wrapper} PROPERTIES COMPILE_OPTIONS -Wno-unknown-pragmas)
      target_sources(${target} PRIVATE ${wrapper})
    else()
      target_sources(${target} PRIVATE ${path})
    endif()
  endforeach()
endfunction()

function(reprise_compile_options target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Wconversion;-Wshadow;-fno-math-errno>
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-lineinfo;-Xcompiler=-Wall,-Wextra,-fno-math-errno>)
  if(REPRISE_WARNINGS_AS_ERRORS)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C,CXX>:-Werror>
                                             $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xptxas=-Werror>)
  endif()
  if(REPRISE_SANITIZE)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${REPRISE_SANITIZE};-fno-omit-frame-pointer;-g>)
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
    if(TARGET ${target}_emulated AND NOT REPRISE_CUDA STREQUAL "emulated")
      target_sources(${target}_emulated PRIVATE $<TARGET_OBJECTS:${target}_${stem}_${level}>)
    endif()
  endforeach()
endfunction()

# A GoogleTest program whose every test is known to ctest. With DEVICE its tests/support/device.hpp means the CPU.
# MPIRUN: the tests start mpirun; one at a time, because one mpirun that ends removes the session folder that another is
# about to use (OpenMPI 4.1), and because ranks that share cores with other tests wait for each other.
#   reprise_test(core_tests error_test.cpp ... [DEVICE] [MPIRUN] LINK reprise_core)
function(reprise_test name)
  cmake_parse_arguments(ARG "DEVICE;MPIRUN" "" "LINK" ${ARGN})
  if(ARG_DEVICE)
    list(APPEND ARG_UNPARSED_ARGUMENTS ${CMAKE_SOURCE_DIR}/tests/support/device_cpu.cpp)
  endif()
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  reprise_compile_options(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gtest GTest::gtest_main)
  set(properties TIMEOUT 300)
  if(ARG_MPIRUN)
    list(APPEND properties RESOURCE_LOCK mpirun)
  endif()
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES ${properties})
endfunction()

# The same test sources on a CUDA device, which tests/support/device.hpp then means: <name>_cuda_emulated_tests on every
# machine, its tests twice in ctest (threads, blocks and streams in their plain order, and all of them the other way round);
# <name>_cuda_tests where CUDA is built in. Sources may include .cu files with kernels of the tests' own.
#   reprise_cuda_test(core elementwise_test.cpp ... LINK reprise_core)
function(reprise_cuda_test name)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  set(cuda_sources ${ARG_UNPARSED_ARGUMENTS})
  list(FILTER cuda_sources INCLUDE REGEX "[.]cu$")
  list(FILTER ARG_UNPARSED_ARGUMENTS EXCLUDE REGEX "[.]cu$")
  list(APPEND ARG_UNPARSED_ARGUMENTS ${CMAKE_SOURCE_DIR}/tests/support/device_cuda.cpp)
  if(REPRISE_CUDA STREQUAL "on")
    add_executable(${name}_cuda_tests ${ARG_UNPARSED_ARGUMENTS})
    reprise_compile_options(${name}_cuda_tests)
    reprise_cuda_device(${name}_cuda_tests on)
    reprise_cuda_sources(${name}_cuda_tests ${cuda_sources})
    target_link_libraries(${name}_cuda_tests PRIVATE ${ARG_LINK} GTest::gtest GTest::gtest_main)
    set_property(GLOBAL APPEND PROPERTY REPRISE_CUDA_TESTS ${name}_cuda_tests)
    if(REPRISE_RUN_ON_GPU)
      gtest_discover_tests(${name}_cuda_tests DISCOVERY_MODE PRE_TEST TEST_PREFIX cuda. PROPERTIES TIMEOUT 300)
    endif()
  endif()
  if(REPRISE_EMULATED_TESTS)
    set(target ${name}_cuda_emulated_tests)
    add_executable(${target} ${ARG_UNPARSED_ARGUMENTS} ${CMAKE_SOURCE_DIR}/tests/support/emulation_environment.cpp)
    reprise_compile_options(${target})
    reprise_cuda_device(${target} emulated)
    reprise_cuda_sources(${target} ${cuda_sources})
    list(TRANSFORM ARG_LINK APPEND "_emulated" REGEX "^reprise_[a-z]+$")
    target_link_libraries(${target} PRIVATE ${ARG_LINK} GTest::gtest GTest::gtest_main)
    set_property(GLOBAL APPEND PROPERTY REPRISE_CUDA_TESTS ${target})
    gtest_discover_tests(${target} DISCOVERY_MODE PRE_TEST TEST_PREFIX cuda_emulated. PROPERTIES TIMEOUT 300)
    gtest_discover_tests(${target} DISCOVERY_MODE PRE_TEST TEST_PREFIX cuda_emulated.reversed.
      PROPERTIES TIMEOUT 300 ENVIRONMENT "REPRISE_EMULATION=descending,late")
  endif()
endfunction()

# A GoogleTest program that runs under mpirun, once per rank count (ctest names: <name>.ranks_<n>). The tests get their
# world from mpi_test_world() of tests/support/mpi_test_main.hpp; the main is linked in.
#   reprise_mpi_test(parallel_mpi_tests communicator_mpi_test.cpp [DEVICE] RANKS 1 2 4 LINK reprise_parallel)
function(reprise_mpi_test name)
  cmake_parse_arguments(ARG "DEVICE" "" "RANKS;LINK" ${ARGN})
  if(ARG_DEVICE)
    list(APPEND ARG_UNPARSED_ARGUMENTS ${CMAKE_SOURCE_DIR}/tests/support/device_cpu.cpp)
  endif()
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS} ${CMAKE_SOURCE_DIR}/tests/support/mpi_test_main.cpp)
  reprise_compile_options(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} reprise_parallel GTest::gtest)
  reprise_mpi_runs(${name} ${name} "" "${ARG_RANKS}")
endfunction()

# The same test sources on a CUDA device, all ranks on one: <name>_cuda_emulated_mpi_tests on every machine, run in both
# orders as by reprise_cuda_test; <name>_cuda_mpi_tests where CUDA is built in.
#   reprise_cuda_mpi_test(parallel communicator_mpi_test.cpp RANKS 1 2 4 LINK reprise_parallel)
function(reprise_cuda_mpi_test name)
  cmake_parse_arguments(ARG "" "" "RANKS;LINK" ${ARGN})
  list(APPEND ARG_LINK reprise_parallel)
  list(REMOVE_DUPLICATES ARG_LINK)
  list(APPEND ARG_UNPARSED_ARGUMENTS ${CMAKE_SOURCE_DIR}/tests/support/device_cuda.cpp
                                     ${CMAKE_SOURCE_DIR}/tests/support/mpi_test_main.cpp)
  if(REPRISE_CUDA STREQUAL "on")
    set(target ${name}_cuda_mpi_tests)
    add_executable(${target} ${ARG_UNPARSED_ARGUMENTS})
    reprise_compile_options(${target})
    reprise_cuda_device(${target} on)
    target_link_libraries(${target} PRIVATE ${ARG_LINK} GTest::gtest)
    if(REPRISE_RUN_ON_GPU)
      reprise_mpi_runs(${target} ${target} "" "${ARG_RANKS}")
    endif()
  endif()
  if(REPRISE_EMULATED_TESTS)
    set(target ${name}_cuda_emulated_mpi_tests)
    add_executable(${target} ${ARG_UNPARSED_ARGUMENTS} ${CMAKE_SOURCE_DIR}/tests/support/emulation_environment.cpp)
    reprise_compile_options(${target})
    reprise_cuda_device(${target} emulated)
    list(TRANSFORM ARG_LINK APPEND "_emulated" REGEX "^reprise_[a-z]+$")
    target_link_libraries(${target} PRIVATE ${ARG_LINK} GTest::gtest)
    reprise_mpi_runs(${target} ${target} "" "${ARG_RANKS}")
    reprise_mpi_runs(${target}.reversed ${target} REPRISE_EMULATION=descending,late "${ARG_RANKS}")
  endif()
endfunction()

# Starts `target` under mpirun with each number of ranks: ctest names <test>.ranks_<n>.
function(reprise_mpi_runs test target environment rank_counts)
  foreach(ranks ${rank_counts})
    add_test(NAME ${test}.ranks_${ranks} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} --oversubscribe
                                                 $<TARGET_FILE:${target}>)
    reprise_mpi_test_properties(${test}.ranks_${ranks} ${ranks} ${environment})
  endforeach()
endfunction()

# Lets mpirun start as root, with more ranks than cores and without pinning them on top of each other.
# More arguments are added to the environment.
function(reprise_mpi_test_properties test ranks)
  set(environment ${ARGN} OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
      OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1
      OMPI_MCA_btl_vader_single_copy_mechanism=none)
  if(REPRISE_SANITIZE MATCHES "address")
    list(APPEND environment ASAN_OPTIONS=detect_leaks=0) # MPI keeps memory until the process ends
  endif()
  set_tests_properties(${test} PROPERTIES TIMEOUT 120 PROCESSORS ${ranks} RESOURCE_LOCK mpirun
                                                ENVIRONMENT "${environment}")
endfunction()
