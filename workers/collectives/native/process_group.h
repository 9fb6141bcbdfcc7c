// The group of this process: MindSpore calls operators by name and hands them nothing of ours.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "group.h"

namespace rankmq {

class ProcessGroup {
 public:
  // Never destroyed: threads of MindSpore's may be in a collective while the process ends.
  static ProcessGroup &instance();

  // Maps the file and takes the rank's place. The group that was open before is left.
  Fault open(int file, const GroupSettings &settings);

  // Leaves the group. Its memory goes when the last thread that is in it has left.
  void close();

  std::shared_ptr<Group> group();

  // As `Group::run`; without a group a fault of kind kNotOpen, which is kept until one is opened.
  Fault run(const Call &call, const void *in, void *out);
  Fault refuse(const std::string &message);

  // The first fault since the group was opened.
  Fault fault();

 private:
  Fault keep_not_open(const std::string &message);

  std::mutex mutex_;
  std::shared_ptr<Group> group_;
  Fault without_group_;
};

}  // namespace rankmq
