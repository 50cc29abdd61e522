// Prints when SimGrid 4 ends patterns of flows.
//
// g++ -O1 -std=c++17 bench/simgrid_ends.cpp -lsimgrid -o simgrid_ends; ./simgrid_ends PLATFORM.xml < PATTERNS
//
// A line of PATTERNS is a flow, "source target bytes seconds", between hosts n0, n1 ...; it begins to share links after
// these seconds. A line "end" ends a pattern. The answer has a line for each pattern: the seconds that it took.

#include <algorithm>
#include <iostream>
#include <simgrid/s4u.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace sg = simgrid::s4u;

struct Flow {
  int source, target;
  double bytes, seconds;
};

static std::vector<sg::Host*> hosts;

static double run(std::vector<Flow> flows) {
  std::stable_sort(flows.begin(), flows.end(), [](const Flow& a, const Flow& b) { return a.seconds < b.seconds; });
  const double began = sg::Engine::get_clock();
  std::vector<sg::CommPtr> under_way;
  for (const Flow& flow : flows) {
    if (began + flow.seconds > sg::Engine::get_clock())
      sg::this_actor::sleep_until(began + flow.seconds);
    under_way.push_back(sg::Comm::sendto_async(hosts.at(flow.source), hosts.at(flow.target), flow.bytes));
  }
  for (const sg::CommPtr& each : under_way)
    each->wait();
  return sg::Engine::get_clock() - began;
}

int main(int argc, char** argv) {
  sg::Engine engine(&argc, argv);
  for (const char* setting : {"network/model:CM02", "network/latency-factor:1", "network/bandwidth-factor:1",
                              "network/weight-S:0", "network/TCP-gamma:0", "network/crosstraffic:0"})
    sg::Engine::set_config(setting);
  engine.load_platform(argv[1]);
  for (std::size_t n = 0; n < engine.get_host_count(); n++)
    hosts.push_back(engine.host_by_name("n" + std::to_string(n)));
  std::vector<std::vector<Flow>> patterns(1);
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "end") {
      patterns.emplace_back();
      continue;
    }
    Flow flow{};
    std::istringstream(line) >> flow.source >> flow.target >> flow.bytes >> flow.seconds;
    patterns.back().push_back(flow);
  }
  patterns.pop_back();
  std::cout.precision(12);
  engine.add_actor("patterns", hosts.at(0), [&patterns] {
    for (const auto& pattern : patterns)
      std::cout << run(pattern) << std::endl;
  });
  engine.run();
}
