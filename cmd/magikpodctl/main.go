// Command magikpodctl is part of magikpod.
package main

func main() {}
