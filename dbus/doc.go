// Package dbus is org.magikpod1: names, the introspection XML, the server, the client, errors and
// polkit.
//
// What does not belong here: what a method does (daemon), and how a result is printed (cmd/magikpodctl).
//
// Layer L4: it may import everything below; daemon never.
package dbus
