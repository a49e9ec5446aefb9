package dbus

import "github.com/magikrun/magikpod/dbus/contract"

// The names on the bus, of which clients know the first ones, too.
const (
	BusName          = contract.BusName
	ManagerPath      = contract.ManagerPath
	ManagerInterface = contract.ManagerInterface
	PodInterface     = contract.PodInterface
	JobInterface     = contract.JobInterface
	NoGrace          = contract.NoGrace

	busDriver               = contract.BusDriver
	propertiesInterface     = contract.PropertiesInterface
	introspectableInterface = "org.freedesktop.DBus.Introspectable"
	objectManagerInterface  = "org.freedesktop.DBus.ObjectManager"
)

// Action is a polkit action. What each allows stands in files/org.magikpod1.policy.
type Action string

// The actions. Every method of the three interfaces needs one of them.
const (
	ActionRead         Action = "org.magikpod1.read"
	ActionManagePods   Action = "org.magikpod1.manage-pods"
	ActionExec         Action = "org.magikpod1.exec"
	ActionReadLogs     Action = "org.magikpod1.read-logs"
	ActionManageImages Action = "org.magikpod1.manage-images"
)
