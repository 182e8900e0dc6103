// The feeder, for Python.
#include <torch/csrc/utils/pybind.h>

#include "feeder.h"

namespace dynloader {

void bind_feeder(pybind11::module_& m);

void bind_feeder(pybind11::module_& m) {
  namespace py = pybind11;
  using py::arg;
  py::class_<ImageOptions>(m, "ImageOptions", "What is done to the images of a column.")
      .def(
          py::init([](int64_t crop_height, int64_t crop_width, int64_t padding, bool is_reflected,
                      double flip_probability, bool flip_alternates, int64_t cutout, double fill,
                      const std::optional<at::Tensor>& values, bool from_channels_last,
                      bool to_channels_last) {
            return ImageOptions{crop_height,      crop_width,         padding,         is_reflected,
                                flip_probability, flip_alternates,    cutout,          fill,
                                values,           from_channels_last, to_channels_last};
          }),
          py::kw_only(), arg("crop_height"), arg("crop_width"), arg("padding"), arg("is_reflected"),
          arg("flip_probability"), arg("flip_alternates"), arg("cutout"), arg("fill"),
          arg("values"), arg("from_channels_last"), arg("to_channels_last"));
  // Without the interpreter's lock: threads that work ahead never need it, and who waits for them
  // must not hold it.
  struct Close {
    void operator()(Feeder* feeder) const {
      // One of the parent's is left: there is no thread here to wait for.
      if (!feeder->is_here()) return;
      const py::gil_scoped_release release;
      delete feeder;
    }
  };
  py::class_<Feeder, std::unique_ptr<Feeder, Close>>(
      m, "Feeder", "Gathers batches of arrays in host memory ahead of their use.")
      .def(py::init(
               [](const std::vector<std::pair<at::Tensor, std::optional<ImageOptions>>>& columns,
                  uint64_t seed, uint32_t epoch, int num_threads, bool pin_memory) {
                 std::vector<Column> made;
                 for (const auto& [data, options] : columns) made.push_back({data, options});
                 return std::unique_ptr<Feeder, Close>(
                     new Feeder(std::move(made), seed, epoch, num_threads, pin_memory));
               }),
           arg("columns"), py::kw_only(), arg("seed"), arg("epoch"), arg("num_threads"),
           arg("pin_memory"))
      .def("begin", &Feeder::begin, arg("seed"), arg("epoch"),
           py::call_guard<py::gil_scoped_release>())
      .def("submit", &Feeder::submit, arg("index"), py::call_guard<py::gil_scoped_release>())
      .def("take", &Feeder::take, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("is_here", &Feeder::is_here)
      .def_property_readonly("num_submitted", &Feeder::num_submitted);
}

}  // namespace dynloader
