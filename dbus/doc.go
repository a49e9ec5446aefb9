// Package dbus serves org.magikpod1: the introspection XML, the methods, polkit.
//
// What does not belong here: what a method does (daemon), and how a result is printed (cli).
//
// Layer L4: it may import everything below; daemon never.
package dbus
