"""The Go types behind docker's `--format`, as far as templates can see them.

A template over `inspect` sees Go structs: fields by Go's name (`.ID`, while the JSON says "Id"), zero values for what
the JSON lacks, structs that print as {a b} and maps that print as map[k:v]. These are those types: field names and
kinds of docker's API structs, one line of text each, taken apart when first needed.

    GoName[=jsonName] type[?]     ? means left out of JSON when empty (omitempty)
    type: string bool int float any time duration empty, a struct's name, and before it * [] map:
"""

from __future__ import annotations

_INFO = """
        ID string, Containers int, ContainersRunning int, ContainersPaused int, ContainersStopped int,
        Images int, Driver string, DriverStatus [][]string, SystemStatus [][]string?, Plugins PluginsInfo,
        MemoryLimit bool, SwapLimit bool, KernelMemory bool?, KernelMemoryTCP bool?,
        CPUCfsPeriod=CpuCfsPeriod bool, CPUCfsQuota=CpuCfsQuota bool, CPUShares bool, CPUSet bool, PidsLimit
        bool, IPv4Forwarding bool, Debug bool, NFd int, OomKillDisable bool, NGoroutines int, SystemTime
        string, LoggingDriver string, CgroupDriver string, CgroupVersion string?, NEventsListener int,
        KernelVersion string, OperatingSystem string, OSVersion string, OSType string, Architecture string,
        IndexServerAddress string, RegistryConfig *RegistryConfig, NCPU int, MemTotal int, GenericResources
        []any, DockerRootDir string, HTTPProxy=HttpProxy string, HTTPSProxy=HttpsProxy string, NoProxy
        string, Name string, Labels []string, ExperimentalBuild bool, ServerVersion string, Runtimes
        map:RuntimeWithStatus, DefaultRuntime string, Swarm SwarmInfo, LiveRestoreEnabled bool, Isolation
        string, InitBinary string, ContainerdCommit Commit, RuncCommit Commit, InitCommit Commit,
        SecurityOptions []string, ProductLicense string?, DefaultAddressPools []NetworkAddressPool?,
        FirewallBackend *FirewallInfo?, CDISpecDirs []string, DiscoveredDevices []DeviceInfo?, Containerd
        *ContainerdInfo?, Warnings []string"""

STRUCTS = {
    "system.clientVersion": """
        Version string?, APIVersion=ApiVersion string?, DefaultAPIVersion string?, GitCommit string?,
        GoVersion string?, Os string?, Arch string?, BuildTime string?, Context string""",
    "system.versionInfo": """
        Client system.clientVersion, Server *Version""",
    "system.clientInfo": """
        Debug bool, Version string?, APIVersion=ApiVersion string?, DefaultAPIVersion string?,
        GitCommit string?, GoVersion string?, Os string?, Arch string?, BuildTime string?, Context string,
        Plugins []any, Warnings []string""",
    "EventActor": """
        ID string, Attributes map:string""",
    "events.Message": """
        Status=status string?, ID=id string?, From=from string?, Type string, Action string, Actor EventActor,
        Scope=scope string?, Time=time int?, TimeNano=timeNano int?""",
    "HealthcheckResult": """
        Start time, End time, ExitCode int, Output string""",
    "Health": """
        Status string, FailingStreak int, Log []*HealthcheckResult""",
    "State": """
        Status string, Running bool, Paused bool, Restarting bool, OOMKilled bool, Dead bool, Pid int,
        ExitCode int, Error string, StartedAt string, FinishedAt string, Health *Health?""",
    "LogConfig": """
        Type string, Config map:string""",
    "PortBinding": """
        HostIP=HostIp string, HostPort string""",
    "RestartPolicy": """
        Name string, MaximumRetryCount int""",
    "WeightDevice": """
        Path string, Weight int""",
    "ThrottleDevice": """
        Path string, Rate int""",
    "DeviceMapping": """
        PathOnHost string, PathInContainer string, CgroupPermissions string""",
    "DeviceRequest": """
        Driver string, Count int, DeviceIDs []string, Capabilities [][]string, Options map:string""",
    "Ulimit": """
        Name string, Hard int, Soft int""",
    "BindOptions": """
        Propagation string?, NonRecursive bool?, CreateMountpoint bool?, ReadOnlyNonRecursive bool?,
        ReadOnlyForceRecursive bool?""",
    "Driver": """
        Name string?, Options map:string?""",
    "VolumeOptions": """
        NoCopy bool?, Labels map:string?, Subpath string?, DriverConfig *Driver?""",
    "ImageOptions": """
        Subpath string?""",
    "TmpfsOptions": """
        SizeBytes int?, Mode any?, Options [][]string?""",
    "Mount": """
        Type string?, Source string?, Target string?, ReadOnly bool?, Consistency string?, BindOptions
        *BindOptions?, VolumeOptions *VolumeOptions?, ImageOptions *ImageOptions?, TmpfsOptions
        *TmpfsOptions?, ClusterOptions *any?""",
    "HostConfig": """
        Binds []string, ContainerIDFile string, LogConfig LogConfig, NetworkMode string, PortBindings
        map:[]PortBinding, RestartPolicy RestartPolicy, AutoRemove bool, VolumeDriver string, VolumesFrom
        []string, ConsoleSize []int, Annotations map:string?, CapAdd []string, CapDrop []string,
        CgroupnsMode string, DNS=Dns []string, DNSOptions=DnsOptions []string, DNSSearch=DnsSearch []string,
        ExtraHosts []string, GroupAdd []string, IpcMode string, Cgroup string, Links []string, OomScoreAdj
        int, PidMode string, Privileged bool, PublishAllPorts bool, ReadonlyRootfs bool, SecurityOpt
        []string, StorageOpt map:string?, Tmpfs map:string?, UTSMode string, UsernsMode string, ShmSize int,
        Sysctls map:string?, Runtime string?, Isolation string, CPUShares=CpuShares int, Memory int,
        NanoCPUs=NanoCpus int, CgroupParent string, BlkioWeight int, BlkioWeightDevice []*WeightDevice,
        BlkioDeviceReadBps []*ThrottleDevice, BlkioDeviceWriteBps []*ThrottleDevice, BlkioDeviceReadIOps
        []*ThrottleDevice, BlkioDeviceWriteIOps []*ThrottleDevice, CPUPeriod=CpuPeriod int,
        CPUQuota=CpuQuota int, CPURealtimePeriod=CpuRealtimePeriod int,
        CPURealtimeRuntime=CpuRealtimeRuntime int, CpusetCpus string, CpusetMems string, Devices
        []DeviceMapping, DeviceCgroupRules []string, DeviceRequests []DeviceRequest, KernelMemory int?,
        KernelMemoryTCP int?, MemoryReservation int, MemorySwap int, MemorySwappiness *int, OomKillDisable
        *bool, PidsLimit *int, Ulimits []*Ulimit, CPUCount=CpuCount int, CPUPercent=CpuPercent int,
        IOMaximumIOps int, IOMaximumBandwidth int, Mounts []Mount?, MaskedPaths []string, ReadonlyPaths
        []string, Init *bool?""",
    "DriverData": """
        Data map:string, Name string""",
    "MountPoint": """
        Type string?, Name string?, Source string, Destination string, Driver string?, Mode string, RW bool,
        Propagation string""",
    "HealthcheckConfig": """
        Test []string?, Interval duration?, Timeout duration?, StartPeriod duration?, StartInterval
        duration?, Retries int?""",
    "Config": """
        Hostname string, Domainname string, User string, AttachStdin bool, AttachStdout bool, AttachStderr
        bool, ExposedPorts map:empty?, Tty bool, OpenStdin bool, StdinOnce bool, Env []string, Cmd []string,
        Healthcheck *HealthcheckConfig?, ArgsEscaped bool?, Image string, Volumes map:empty, WorkingDir
        string, Entrypoint []string, NetworkDisabled bool?, MacAddress string?, OnBuild []string, Labels
        map:string, StopSignal string?, StopTimeout *int?, Shell []string?""",
    "Address": """
        Addr string, PrefixLen int""",
    "EndpointIPAMConfig": """
        IPv4Address string?, IPv6Address string?, LinkLocalIPs []string?""",
    "EndpointSettings": """
        IPAMConfig *EndpointIPAMConfig, Links []string, Aliases []string, MacAddress string, DriverOpts
        map:string, GwPriority int, NetworkID string, EndpointID string, Gateway string, IPAddress string,
        IPPrefixLen int, IPv6Gateway string, GlobalIPv6Address string, GlobalIPv6PrefixLen int, DNSNames
        []string""",
    "NetworkSettings": """
        Bridge string, SandboxID string, SandboxKey string, Ports map:[]PortBinding, HairpinMode bool,
        LinkLocalIPv6Address string, LinkLocalIPv6PrefixLen int, SecondaryIPAddresses []Address,
        SecondaryIPv6Addresses []Address, EndpointID string, Gateway string, GlobalIPv6Address string,
        GlobalIPv6PrefixLen int, IPAddress string, IPPrefixLen int, IPv6Gateway string, MacAddress string,
        Networks map:*EndpointSettings""",
    "Platform": """
        Architecture=architecture string, OS=os string, OSVersion=os.version string?, OSFeatures=os.features
        []string?, Variant=variant string?""",
    "Descriptor": """
        MediaType=mediaType string, Digest=digest any, Size=size int, URLs=urls []string?,
        Annotations=annotations map:string?, Data=data []int?, Platform=platform *Platform?,
        ArtifactType=artifactType string?""",
    "ContainerInspect": """
        ID=Id string, Created string, Path string, Args []string, State *State, Image string, ResolvConfPath
        string, HostnamePath string, HostsPath string, LogPath string, Name string, RestartCount int, Driver
        string, Platform string, MountLabel string, ProcessLabel string, AppArmorProfile string, ExecIDs
        []string, HostConfig *HostConfig, GraphDriver DriverData, SizeRw *int?, SizeRootFs *int?, Mounts
        []MountPoint, Config *Config, NetworkSettings *NetworkSettings, ImageManifestDescriptor *Descriptor?""",
    "ImageConfig": """
        User string?, ExposedPorts map:empty?, Env []string?, Entrypoint []string?, Cmd []string?, Volumes
        map:empty?, WorkingDir string?, Labels map:string?, StopSignal string?, ArgsEscaped bool?,
        Healthcheck *HealthcheckConfig?, OnBuild []string?, Shell []string?""",
    "RootFS": """
        Type string?, Layers []string?""",
    "Metadata": """
        LastTagTime time?""",
    "ImageInspect": """
        ID=Id string, RepoTags []string, RepoDigests []string, Parent string, Comment string, Created
        string?, Container string?, ContainerConfig *Config?, DockerVersion string, Author string, Config
        *ImageConfig, Architecture string, Variant string?, Os string, OsVersion string?, Size int,
        VirtualSize int?, GraphDriver DriverData, RootFS RootFS, Metadata Metadata, Descriptor *Descriptor?,
        Manifests []any?""",
    "IPAMConfig": """
        Subnet string?, IPRange string?, Gateway string?, AuxAddress=AuxiliaryAddresses map:string?""",
    "IPAM": """
        Driver string, Options map:string, Config []IPAMConfig""",
    "ConfigReference": """
        Network string""",
    "EndpointResource": """
        Name string, EndpointID string, MacAddress string, IPv4Address string, IPv6Address string""",
    "PeerInfo": """
        Name string, IP string""",
    "Task": """
        Name string, EndpointID string, EndpointIP string, Info map:string""",
    "ServiceInfo": """
        VIP string, Ports []string, LocalLBIndex int, Tasks []Task""",
    "NetworkInspect": """
        Name string, ID=Id string, Created time, Scope string, Driver string, EnableIPv4 bool, EnableIPv6
        bool, IPAM IPAM, Internal bool, Attachable bool, Ingress bool, ConfigFrom ConfigReference,
        ConfigOnly bool, Containers map:EndpointResource, Options map:string, Labels map:string, Peers
        []PeerInfo?, Services map:ServiceInfo?""",
    "UsageData": """
        RefCount int, Size int""",
    "Volume": """
        ClusterVolume *any?, CreatedAt string?, Driver string, Labels map:string, Mountpoint string, Name
        string, Options map:string, Scope string, Status map:any?, UsageData *UsageData?""",
    "PluginsInfo": """
        Volume []string, Network []string, Authorization []string, Log []string""",
    "IndexInfo": """
        Name string, Mirrors []string, Secure bool, Official bool""",
    "RegistryConfig": """
        AllowNondistributableArtifactsCIDRs []*any?, AllowNondistributableArtifactsHostnames []string?,
        InsecureRegistryCIDRs []*any, IndexConfigs map:*IndexInfo, Mirrors []string""",
    "RuntimeWithStatus": """
        Path=path string?, Args=runtimeArgs []string?, Type=runtimeType string?, Options=options map:any?,
        Status=status map:string?""",
    "SwarmInfo": """
        NodeID string, NodeAddr string, LocalNodeState string, ControlAvailable bool, Error string,
        RemoteManagers []any, Nodes int?, Managers int?, Cluster *any?, Warnings []string?""",
    "Commit": """
        ID string, Expected string?""",
    "NetworkAddressPool": """
        Base string, Size int""",
    "FirewallInfo": """
        Driver string, Info [][]string?""",
    "DeviceInfo": """
        Source string, ID string""",
    "ContainerdNamespaces": """
        Containers string, Plugins string""",
    "ContainerdInfo": """
        Address string?, Namespaces ContainerdNamespaces""",
    "Info": _INFO,
    "system.dockerInfo": _INFO
    + """, ServerErrors []string?, ClientInfo *system.clientInfo?,
        ClientErrors []string?""",
    "ComponentVersion": """
        Name string, Version string, Details map:string?""",
    "Version": """
        Platform any?, Components []ComponentVersion?, Version string, APIVersion=ApiVersion string,
        MinAPIVersion string?, GitCommit string, GoVersion string, Os string, Arch string, KernelVersion
        string?, Experimental bool?, BuildTime string?""",
}

Field = tuple[str, str, str, bool]
_parsed: dict[str, dict[str, Field]] = {}


def fields(struct: str) -> dict[str, Field]:
    """Go name -> (Go name, JSON name, type, omitempty), in the struct's order."""
    if struct not in _parsed:
        made: dict[str, Field] = {}
        for text in " ".join(STRUCTS[struct].split()).split(", "):
            name, kind = text.split(" ", 1)
            go, _, json = name.partition("=")
            made[go] = (go, json or go, kind.removesuffix("?"), kind.endswith("?"))
        _parsed[struct] = made
    return _parsed[struct]
