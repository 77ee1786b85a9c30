// SPDX-License-Identifier: GPL-2.0-only
// Runs in the test VMs:
//
//   vm_helper queue NUMBER drop|accept|hold [MAXLEN]  listens on a queue of NFQUEUE: its verdict on each packet
//   vm_helper bpf PF HOOK PRIORITY                    a BPF program drops all packets at a hook of netfilter
//   vm_helper bpf-egress CGROUP                       a BPF program drops what the processes of that control group send
//   vm_helper bpf-ingress CGROUP                      the same for what comes to their sockets
//   vm_helper xdp DEVICE                              an XDP program drops all that comes in by the device
//   vm_helper lsm HOOK                                a BPF program at a hook of the security modules refuses everything
//   vm_helper ipvs ADDRESS PORT                       a UDP service of IPVS that has no server
//   vm_helper forget                                  conntrack's connections of this network namespace
//   vm_helper ovs ...                                 Open vSwitch: see open_vswitch.h
//   vm_helper terminal TIMES PROGRAM ARGUMENT...      runs it on a terminal, and types ^C once it shows "ready", TIMES
//                                                     times with a second in between
//
// The first six say "ready", or the id of the program, when they do so, and run until they are killed.
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pty.h>
#include <sys/socket.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/ip_vs.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "open_vswitch.h"

namespace {

[[noreturn]] void fail(const char* what) {
    std::perror(what);
    std::exit(1);
}

class Queue {
public:
    explicit Queue(std::uint16_t number) : number_(number), socket_(socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER)) {
        sockaddr_nl address{};
        address.nl_family = AF_NETLINK;
        if (socket_ < 0 || bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)))
            fail("netlink");
    }

    template <typename T>
    void send(std::uint16_t type, std::uint16_t attribute, const T& value, bool acknowledged) {
        struct {
            nlmsghdr header;
            nfgenmsg family;
            nlattr attribute;
            T value;
        } __attribute__((packed)) message{};
        message.header.nlmsg_len = sizeof(message);
        message.header.nlmsg_type = static_cast<std::uint16_t>(NFNL_SUBSYS_QUEUE << 8 | type);
        message.header.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | (acknowledged ? NLM_F_ACK : 0));
        message.family.res_id = htons(number_);
        message.attribute.nla_type = attribute;
        message.attribute.nla_len = sizeof(nlattr) + sizeof(T);
        message.value = value;
        if (::send(socket_, &message, sizeof(message), 0) < 0)
            fail("send");
        if (acknowledged && error_of(receive()) != 0)
            fail("the queue was refused");
    }

    // One message, with its header.
    std::vector<char> receive() {
        std::vector<char> buffer(65536);
        const ssize_t size = recv(socket_, buffer.data(), buffer.size(), 0);
        if (size < 0)
            fail("recv");
        buffer.resize(static_cast<std::size_t>(size));
        return buffer;
    }

    static int error_of(const std::vector<char>& message) {
        nlmsghdr header{};
        std::memcpy(&header, message.data(), sizeof(header));
        int error = 0;
        if (header.nlmsg_type == NLMSG_ERROR)
            std::memcpy(&error, message.data() + sizeof(header), sizeof(error));
        errno = -error;
        return error;
    }

private:
    std::uint16_t number_;
    int socket_;
};

void listen_on(std::uint16_t number, const std::string& mode, std::uint32_t max_length) {
    Queue queue(number);
    nfqnl_msg_config_cmd bind{};
    bind.command = NFQNL_CFG_CMD_BIND;
    queue.send(NFQNL_MSG_CONFIG, NFQA_CFG_CMD, bind, true);
    nfqnl_msg_config_params copy{};
    copy.copy_range = htonl(64);
    copy.copy_mode = NFQNL_COPY_PACKET;
    queue.send(NFQNL_MSG_CONFIG, NFQA_CFG_PARAMS, copy, true);
    queue.send(NFQNL_MSG_CONFIG, NFQA_CFG_QUEUE_MAXLEN, htonl(max_length), true);
    std::puts("ready");
    std::fflush(stdout);
    for (;;) {
        const std::vector<char> message = queue.receive();
        // The first attribute of a packet is its header.
        constexpr std::size_t at = sizeof(nlmsghdr) + sizeof(nfgenmsg) + sizeof(nlattr);
        nfqnl_msg_packet_hdr packet{};
        if (mode == "hold" || message.size() < at + sizeof(packet))
            continue;
        std::memcpy(&packet, message.data() + at, sizeof(packet));
        nfqnl_msg_verdict_hdr verdict{};
        verdict.verdict = htonl(mode == "drop" ? NF_DROP : NF_ACCEPT);
        verdict.id = packet.packet_id;
        queue.send(NFQNL_MSG_VERDICT, NFQA_VERDICT_HDR, verdict, false);
    }
}

void drop_with_bpf(std::uint32_t pf, std::uint32_t hook, std::int32_t priority) {
    constexpr int program_type = 32, attach_type = 45; // BPF_PROG_TYPE_NETFILTER and BPF_NETFILTER, from 6.4
    bpf_insn code[2]{};
    code[0].code = BPF_ALU64 | BPF_MOV | BPF_K; // r0 = NF_DROP
    code[1].code = BPF_JMP | BPF_EXIT;
    LIBBPF_OPTS(bpf_prog_load_opts, options);
    options.expected_attach_type = static_cast<bpf_attach_type>(attach_type);
    const int program = bpf_prog_load(static_cast<bpf_prog_type>(program_type), "drops_all", "GPL", code, 2, &options);
    if (program < 0)
        fail("bpf_prog_load");
    struct {
        std::uint32_t program, target, attach_type, flags;
        std::uint32_t pf, hook;
        std::int32_t priority;
        std::uint32_t netfilter_flags;
    } link{static_cast<std::uint32_t>(program), 0, attach_type, 0, pf, hook, priority, 0};
    constexpr int link_create = 28;
    if (syscall(SYS_bpf, link_create, &link, sizeof(link)) < 0)
        fail("BPF_LINK_CREATE");
    bpf_prog_info info{};
    std::uint32_t size = sizeof(info);
    if (bpf_obj_get_info_by_fd(program, &info, &size))
        fail("BPF_OBJ_GET_INFO_BY_FD");
    std::printf("%u\n", info.id);
    std::fflush(stdout);
    for (;;)
        pause();
}

// A program that returns `verdict`, where the kernel calls it.
void attach_bpf(bpf_prog_type type, bpf_attach_type attach, std::int32_t verdict, int target, std::uint32_t flags,
                int type_id = 0) {
    bpf_insn code[2]{};
    code[0].code = BPF_ALU64 | BPF_MOV | BPF_K;
    code[0].imm = verdict;
    code[1].code = BPF_JMP | BPF_EXIT;
    LIBBPF_OPTS(bpf_prog_load_opts, options);
    options.expected_attach_type = attach;
    options.attach_btf_id = static_cast<std::uint32_t>(type_id);
    const int program = bpf_prog_load(type, "drops_all", "GPL", code, 2, &options);
    if (program < 0)
        fail("bpf_prog_load");
    LIBBPF_OPTS(bpf_link_create_opts, how);
    how.flags = flags;
    if (bpf_link_create(program, target, attach, &how) < 0)
        fail("BPF_LINK_CREATE");
    std::puts("ready");
    std::fflush(stdout);
    for (;;)
        pause();
}

void add_ipvs_service(const char* address, std::uint16_t port) {
    const int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    ip_vs_service_user service{};
    service.protocol = IPPROTO_UDP;
    service.port = htons(port);
    service.netmask = 0xffffffff;
    std::strcpy(service.sched_name, "rr");
    if (fd < 0 || inet_pton(AF_INET, address, &service.addr) != 1 ||
        setsockopt(fd, IPPROTO_IP, IP_VS_SO_SET_ADD, &service, sizeof(service)))
        fail("IP_VS_SO_SET_ADD");
}

void forget_connections() {
    struct {
        nlmsghdr head;
        nfgenmsg family;
    } request{};
    request.head.nlmsg_len = sizeof(request);
    request.head.nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE; // of which nothing is said: all
    request.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    struct {
        nlmsghdr head;
        nlmsgerr error;
    } answer{};
    const int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
    if (netlink < 0 || send(netlink, &request, sizeof(request), 0) < 0 || recv(netlink, &answer, sizeof(answer), 0) < 0)
        fail("netlink");
    close(netlink);
    errno = -answer.error.error;
    if (errno != 0)
        fail("conntrack");
}

// Prints what the program shows, and returns its exit code.
int on_terminal(int interrupts, char** program) {
    int terminal = -1;
    const pid_t pid = forkpty(&terminal, nullptr, nullptr, nullptr);
    if (pid < 0)
        fail("forkpty");
    if (pid == 0) {
        execvp(program[0], program);
        fail(program[0]);
    }
    std::string shown;
    bool pause = false;
    for (;;) {
        pollfd ready{terminal, POLLIN, 0};
        const bool due = interrupts > 0 && shown.find("ready") != std::string::npos;
        if (poll(&ready, 1, due && pause ? 1000 : due ? 0 : -1) == 0) {
            if (write(terminal, "\x03", 1) != 1)
                fail("write");
            --interrupts;
            pause = true;
            continue;
        }
        char buffer[4096];
        const ssize_t size = read(terminal, buffer, sizeof(buffer));
        if (size <= 0) // EIO: nobody has it open any more
            break;
        shown.append(buffer, static_cast<std::size_t>(size));
        std::fwrite(buffer, 1, static_cast<std::size_t>(size), stdout);
        std::fflush(stdout);
    }
    int status = 0;
    if (waitpid(pid, &status, 0) != pid)
        fail("waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

} // namespace

int main(int count, char** arguments) {
    const std::string what = count > 1 ? arguments[1] : "";
    const auto number = [&](int index) { return index < count ? std::atoi(arguments[index]) : 0; };
    if (what == "queue" && count >= 4)
        listen_on(static_cast<std::uint16_t>(number(2)), arguments[3],
                  count > 4 ? static_cast<std::uint32_t>(number(4)) : 1024);
    if (what == "bpf" && count == 5)
        drop_with_bpf(static_cast<std::uint32_t>(number(2)), static_cast<std::uint32_t>(number(3)), number(4));
    if (what == "bpf-egress" && count == 3)
        attach_bpf(BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS, 0, open(arguments[2], O_RDONLY | O_DIRECTORY), 0);
    if (what == "bpf-ingress" && count == 3)
        attach_bpf(BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_INGRESS, 0, open(arguments[2], O_RDONLY | O_DIRECTORY), 0);
    if (what == "xdp" && count == 3) {
        constexpr std::uint32_t in_the_stack = 1U << 1; // XDP_FLAGS_SKB_MODE
        attach_bpf(BPF_PROG_TYPE_XDP, BPF_XDP, 1, static_cast<int>(if_nametoindex(arguments[2])),
                   in_the_stack); // XDP_DROP
    }
    if (what == "lsm" && count == 3)
        attach_bpf(BPF_PROG_TYPE_LSM, BPF_LSM_MAC, -EPERM, 0, 0, libbpf_find_vmlinux_btf_id(arguments[2], BPF_LSM_MAC));
    if (what == "forget") {
        forget_connections();
        return 0;
    }
    if (what == "ovs" && count >= 3)
        return open_vswitch(count - 2, arguments + 2);
    if (what == "terminal" && count >= 4)
        return on_terminal(number(2), arguments + 3);
    if (what == "ipvs" && count == 4) {
        add_ipvs_service(arguments[2], static_cast<std::uint16_t>(number(3)));
        return 0;
    }
    std::fputs("usage: see the top of vm_helper.cpp\n", stderr);
    return 2;
}
