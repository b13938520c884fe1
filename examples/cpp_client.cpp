// Segment a PPM image with an exported ONNX file in C++, with OpenVINO as the runtime, whose headers and libraries
// `pip install openvino` has.
//
//   foveal export efficientvit_b0.camvid --bake --output camvid.onnx
//   OV=$(python -c "import openvino; print(openvino.__path__[0])")
//   g++ -std=c++17 -O2 cpp_client.cpp -o cpp_client -I$OV/include $OV/libs/libopenvino.so.* -Wl,-rpath,$OV/libs
//   ./cpp_client camvid.onnx street.ppm mask.pgm
//
// The mask has a class index for each pixel. With --bake the file takes decoded pixels and gives classes, so that nothing
// has to be prepared here. Programs such as ImageMagick write PPM (P6, 8 bits).

#include <algorithm>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

struct Image {
    size_t width = 0, height = 0;
    std::vector<uint8_t> pixels; // red, green, blue of each pixel, row by row
};

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    size_t largest = 0;
    Image image;
    if (!(file >> magic >> image.width >> image.height >> largest) || magic != "P6" || largest != 255)
        throw std::runtime_error(path + " is no PPM image of 8 bits (P6, without comments)");
    if (!image.width || !image.height || image.width > 65536 || image.height > 65536)
        throw std::runtime_error(path + ": sides must be 1 to 65536 pixels");
    file.get(); // one space
    image.pixels.resize(3 * image.width * image.height);
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size())))
        throw std::runtime_error(path + " is cut off");
    return image;
}

// The names of the classes, which the metadata of the file has as "sky, building, ...".
std::vector<std::string> class_names(const std::shared_ptr<ov::Model>& model) {
    std::istringstream text(model->get_rt_info<std::string>("framework", "names"));
    std::vector<std::string> names;
    for (std::string name; std::getline(text, name, ',');) names.push_back(name.substr(name.find_first_not_of(' ')));
    return names;
}

int main(int count, char** arguments) try {
    if (count != 4) throw std::runtime_error("usage: cpp_client MODEL.onnx IMAGE.ppm MASK.pgm");
    Image image = read_ppm(arguments[2]);
    ov::Core core;
    auto model = core.read_model(arguments[1]);
    const auto exact = ov::hint::inference_precision(ov::element::f32); // some processors take bfloat16 otherwise
    auto request = core.compile_model(model, "CPU", exact).create_infer_request();
    request.set_input_tensor(ov::Tensor(ov::element::u8, {1, image.height, image.width, 3}, image.pixels.data()));
    request.infer();
    const ov::Tensor classes = request.get_output_tensor(); // (1, H, W)
    const uint8_t* mask = classes.data<uint8_t>();

    std::ofstream file(arguments[3], std::ios::binary);
    file << "P5 " << image.width << " " << image.height << " 255\n";
    file.write(reinterpret_cast<const char*>(mask), static_cast<std::streamsize>(classes.get_size()));
    if (!file.flush()) throw std::runtime_error(std::string(arguments[3]) + " cannot be written");

    const auto names = class_names(model);
    for (size_t index = 0; index < names.size(); index++) {
        const auto pixels = std::count(mask, mask + classes.get_size(), static_cast<uint8_t>(index));
        std::cout << names[index] << ": " << 100.0 * pixels / classes.get_size() << " %\n";
    }
} catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
}
