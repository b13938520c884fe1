// Runs bindings that test_neon.py wrote: run_dump THREADS FILE... writes the result of each to FILE.out.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>
#include "engine.cpp"

namespace {

struct Header {
  int64_t ops, maps, bytes, result, result_floats;
};

// Addresses in the file are numbers of bytes from the start of the memory, plus 1; 0 is no address.
template <class T>
void relocate(T*& pointer, char* memory) {
  if (pointer) pointer = (T*)(memory + ((int64_t)(intptr_t)pointer - 1));
}

template <class T>
std::vector<T> read(std::FILE* file, int64_t count) {
  std::vector<T> values(count);
  if ((int64_t)std::fread(values.data(), sizeof(T), count, file) != count) std::exit(2);
  return values;
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 2; i < count; i++) {
    std::FILE* file = std::fopen(arguments[i], "rb");
    if (!file) return 2;
    const Header header = read<Header>(file, 1)[0];
    auto ops = read<Op>(file, header.ops);
    auto maps = read<Map>(file, header.maps);
    auto memory = read<char>(file, header.bytes);
    std::fclose(file);
    for (auto& map : maps) relocate(map.data, memory.data());
    for (auto& op : ops) {
      for (int j = 0; j < 4; j++) relocate(op.weight[j], memory.data()), relocate(op.bias[j], memory.data());
      relocate(op.work, memory.data());
    }
    if (foveal_run(ops.data(), header.ops, maps.data(), std::atoi(arguments[1]), nullptr)) return 3;
    file = std::fopen((std::string(arguments[i]) + ".out").c_str(), "wb");
    if (!file ||
        (int64_t)std::fwrite(memory.data() + header.result, 4, header.result_floats, file) != header.result_floats)
      return 2;
    std::fclose(file);
  }
  return 0;
}
